"""`mpa-edge report`: what it writes, what it prints, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpa_edge.cli.main import exit_code
from tests.bench import made_up


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """mine, same (as good) and worse, in the working folder."""
    for name, slower in (("mine", 1.0), ("same", 1.0), ("worse", 1.2)):
        made_up.write(tmp_path / name / "bench" / "cpu" / "gguf-q8_0", run=name, target="cpu", n=80, slower=slower)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_writes_one_file_and_says_the_verdict(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["report", "mine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(("✓ holds: mine", "? inconclusive: mine"))
    assert lines[-1] == "mine/report.html"
    assert (runs / "mine" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_json_goes_to_stdout(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["report", "mine", "--json"]) == 0
    said = capsys.readouterr()
    assert not (runs / "mine" / "report.html").exists()
    assert json.loads(said.out)["benches"][0]["bench"]["scheme"] == "gguf-q8_0"
    assert exit_code(["report", "mine", "--json", "--out", "page.html"]) == 0
    assert (runs / "page.html").is_file()


@pytest.mark.parametrize(
    ("newer", "gate", "code"),
    [
        ("same", True, 0),
        ("worse", True, 3),
        ("worse", False, 0),
    ],
)
def test_two_runs_are_compared(
    runs: Path, capsys: pytest.CaptureFixture[str], newer: str, gate: bool, code: int
) -> None:
    assert exit_code(["report", "mine", newer, *(["--fail-on-regression"] if gate else [])]) == code
    said = capsys.readouterr()
    assert ("✗ regression" in said.out) == (newer == "worse")
    assert (runs / newer / "report.html").is_file()
    assert not (runs / "mine" / "report.html").exists()
    if code:
        assert said.err == "error: worse is worse than mine in 6 ways: see what is marked above\n"


def test_a_gate_that_compares_nothing_is_not_green(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for scheme in ("gguf-f16", "onnx-int8"):
        made_up.write(runs / "other" / "bench" / "cpu" / scheme, run="other", target="cpu", scheme=scheme, n=80)
    assert exit_code(["report", "mine", "other", "--fail-on-regression"]) == 1
    assert "have no target and scheme in common" in capsys.readouterr().err
    assert exit_code(["report", "mine", "other"]) == 0


@pytest.mark.parametrize("words", [["mine", "--fail-on-regression"], []])
def test_wrong_usage(runs: Path, words: list[str]) -> None:
    assert exit_code(["report", *words]) == 2


def test_errors_are_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "empty").mkdir()
    (runs / "mine" / "bench" / "cpu" / "gguf-q8_0" / "bench.json").write_text("{")
    for words, said in (
        (["empty"], "empty has no benchmark yet: mpa-edge bench empty"),
        (["mine"], "run mpa-edge bench again"),
        (["same", "--out", "nowhere/x.html"], "cannot write nowhere/x.html (No such file or directory): choose"),
    ):
        assert exit_code(["report", *words]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert said in error
