from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from mpa_edge.cli.main import exit_code
from mpa_edge.errors import MpaError
from mpa_edge.progress import say
from mpa_edge.runs import log
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.runs.lock import run_lock


@pytest.fixture(autouse=True)
def closed():
    yield
    log.close_log()
    log.show_log(False)


def text(folder: Path) -> str:
    return (folder / log.LOG_FILE).read_text(encoding="utf-8")


def test_the_lock_opens_the_log_and_messages_are_in_it(tmp_path: Path, capsys) -> None:
    with run_lock(tmp_path / "run"):
        say("annotate: resuming")
    assert "annotate: resuming" in capsys.readouterr().err
    lines = text(tmp_path / "run").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ \d+ \w+: ", line) for line in lines)
    assert any("versions: mpa-edge" in line and f"python {sys.version.split()[0]}" in line for line in lines)
    assert any(line.endswith("annotate: resuming") for line in lines)


def test_an_export_logs_to_its_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with run_lock(tmp_path / "exports"):
        assert log.log_path() == tmp_path / log.LOG_FILE
    with run_lock(tmp_path / "bench" / "cpu" / "onnx-int8"):
        assert log.log_path() == tmp_path / log.LOG_FILE


def test_the_libraries_may_be_silenced(tmp_path: Path, monkeypatch) -> None:
    log.open_log(tmp_path)
    logging.disable(logging.CRITICAL)
    try:
        log.logger.debug("still here")
    finally:
        logging.disable(logging.NOTSET)
    assert "still here" in text(tmp_path)


def fails() -> None:
    raise ZeroDivisionError("of the child")


def test_the_traceback_of_an_isolated_step_is_in_the_log(tmp_path: Path, capfd) -> None:
    log.open_log(tmp_path)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: of the child"):
        run_isolated(fails)
    assert "Traceback (most recent call last)" in text(tmp_path)
    assert "in fails" in text(tmp_path)
    assert "Traceback" not in capfd.readouterr().err


def test_secrets_are_not_in_the_log(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "abc-123-def-456")
    log.open_log(tmp_path)
    try:
        raise MpaError("server https://me:hunter2@host said abc-123-def-456 to Bearer xyz")
    except MpaError:
        log.logger.exception("request failed, key %s", "hf_abcdefghijklmnopqrst")
    found = text(tmp_path)
    assert "(MY_API_KEY)" in found
    assert not any(secret in found for secret in ("abc-123", "hunter2", "hf_abc", "xyz"))


@pytest.mark.parametrize("key", ["sk-canary-0123456789\r", "sk\u2013canary-0123456789", "sk-\udc80canary-0123456789"])
def test_secrets_are_found_as_messages_quote_them(monkeypatch, key: str) -> None:
    monkeypatch.setenv("MY_API_KEY", key)
    raw = key.encode("utf-8", "surrogateescape")
    for text in (key, repr(key), ascii(key), repr(b"Bearer " + raw), f"{[raw]}", quote(raw, safe="")):
        assert "canary" not in log.redacted(f"Illegal header value {text}")


def test_credentials_of_a_proxy_are_hidden_whatever_is_in_them() -> None:
    for address in ("http://me:canary@host", "socks5://me:can@ary@host", "http://canary@host"):
        assert "ary" not in log.redacted(f"no way to {address}:1, {address!r}")
    assert log.redacted("Proxy-Authorization: Basic Y2FuYXJ5") == "Proxy-Authorization: Basic ***"


def test_a_full_log_is_rotated(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(log, "MAX_BYTES", 5_000)
    log.open_log(tmp_path)
    for n in range(600):
        log.logger.info("line %d %s", n, "x" * 50)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["run.log", "run.log.1", "run.log.2", "run.log.3"]
    assert "line 599" in text(tmp_path)
    assert all(path.stat().st_size < 6_000 for path in tmp_path.iterdir())


def test_a_second_process_and_a_replaced_file_lose_nothing(tmp_path: Path) -> None:
    log.open_log(tmp_path)
    (tmp_path / log.LOG_FILE).unlink()
    log.logger.info("after")
    code = f"from mpa_edge.runs.log import *; append_to(Path({str(tmp_path / log.LOG_FILE)!r})); logger.info('other')"
    subprocess.run([sys.executable, "-c", code], check=True)
    log.logger.info("last")
    assert [line.rpartition(" ")[2] for line in text(tmp_path).splitlines()] == ["after", "other", "last"]


def test_a_disk_that_refuses_the_log_does_not_stop_the_run(tmp_path: Path, capsys) -> None:
    log.append_to(tmp_path / "gone" / log.LOG_FILE)
    log.logger.info("lost")
    assert capsys.readouterr().err == ""


def test_verbose_shows_the_log_but_no_message_twice(tmp_path: Path, capsys) -> None:
    log.show_log(True)
    say("once")
    log.logger.debug("a decision")
    err = capsys.readouterr().err
    assert err.count("once") == 1
    assert "a decision" in err


def test_an_unexpected_error_names_the_log(tmp_path: Path, monkeypatch, capsys) -> None:
    from mpa_edge.cli import main

    def broken(ctx) -> None:
        log.open_log(tmp_path / "run")
        raise KeyError("nobody expected this")

    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main.main, "invoke", broken)
    assert exit_code([]) == 1
    assert "the traceback is in run/run.log" in capsys.readouterr().err
    assert "nobody expected this" in text(tmp_path / "run")
    assert "Traceback" in text(tmp_path / "run")


def test_names_that_are_no_text_are_written(tmp_path: Path) -> None:
    log.open_log(tmp_path)
    log.logger.info("image %s", os.fsdecode(b"caf\xe9.png"))
    assert "caf\\udce9.png" in text(tmp_path)


SECRET = "canary-5f2b-9d41"


def test_values_are_taken_out_of_what_programs_print() -> None:
    here = {
        "HF_TOKEN": SECRET,
        "PLAIN": "plain-plain",
        "AWS_SECRET_ACCESS_KEY": f"{SECRET}-longer",
        "MY_PASSWORD": "short",
    }
    redact = log.redactor(["PLAIN"], here)
    text = redact(f"{SECRET}-longer {SECRET} plain-plain short")
    assert text == "(AWS_SECRET_ACCESS_KEY) (HF_TOKEN) (PLAIN) short"
    assert log.redactor([], here)("plain-plain") == "plain-plain"
    key = "-----BEGIN KEY-----\nabcdefghijkl\nmnopqrstuvwx\n"
    assert log.redactor([], {"MY_KEY": key})("loaded mnopqrstuvwx") == "loaded (MY_KEY)"
