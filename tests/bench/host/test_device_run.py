"""What is asked of a device before a job, tried on this machine."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mpa_edge.bench.host import device_run
from mpa_edge.bench.host.device_run import choose_runner, cool_down, fetch
from mpa_edge.bench.measurement import Reach
from mpa_edge.bench.transports.transport import LocalTransport
from mpa_edge.errors import MpaError
from tests.bench.peers import program


@pytest.fixture
def here(tmp_path: Path) -> LocalTransport:
    return LocalTransport(str(tmp_path / "root"))


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """A Python with nothing but its standard library."""
    path = tmp_path / "bare python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    path.chmod(0o755)
    return str(path)


def choose(here: LocalTransport, format_: str, fallback: str | None = None, **asked: str | None):
    return choose_runner(here, format_, Reach(**asked), fallback)


@pytest.mark.parametrize("format_", ["onnx", "gguf", "hybrid"])
def test_this_python_answers_on_this_machine(here: LocalTransport, format_: str) -> None:
    assert choose(here, format_) == (sys.executable, False)
    assert choose(here, format_, fallback="/nowhere") == (sys.executable, False)


def test_a_python_without_the_runtime_is_told_what_to_install(here: LocalTransport, bare_python: str) -> None:
    packages = "numpy onnxruntime pillow pydantic tokenizers"
    with pytest.raises(
        MpaError, match=r"lacks .*onnxruntime.*: run .*, or name another Python with --python$"
    ) as caught:
        choose(here, "onnx", python=bare_python)
    assert set(packages.split()) == set(re.findall("pip install (.*) there", str(caught.value))[0].split())
    with pytest.raises(MpaError, match=r"llama-cpp-python==.* gguf there.*or a llama-server with --server"):
        choose(here, "gguf", python=bare_python)


def test_only_what_is_lacking_is_to_be_installed(here: LocalTransport, tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("numpy", "PIL", "pydantic"):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").touch()
    program = wrapper(tmp_path, f'PYTHONPATH={site} exec "{sys.executable}" -S "$@"')
    with pytest.raises(
        MpaError, match=f"lacks llama_cpp: run {program} -m pip install llama-cpp-python==[0-9.]+ there"
    ):
        (site / "gguf.py").touch()
        choose(here, "gguf", python=program)


def wrapper(tmp_path: Path, script: str) -> str:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.peer
def test_a_python_that_is_too_old_says_what_the_device_needs(here: LocalTransport) -> None:
    old = program("pypy3")  # 3.9 in Debian
    says = (
        r"pypy3 is Python 3\.9, and 3.10 is the oldest that works: install Python 3.10 or newer as PYTHON there, run "
        r"PYTHON -m pip install numpy pillow pydantic llama-cpp-python==[0-9.]+ gguf, and name it with --python PYTHON,"
        " or a llama-server with --server"
    )
    with pytest.raises(MpaError, match=says) as caught:
        choose(here, "gguf", python=old)
    assert "mpa-edge[" not in str(caught.value)


@pytest.mark.parametrize("format_", ["onnx", "gguf"])
def test_what_a_wrapper_prints_does_not_count(here: LocalTransport, tmp_path: Path, format_: str) -> None:
    program = wrapper(tmp_path, f'echo Welcome to 3.8; echo no >&2; "{sys.executable}" "$@"; echo bye')
    assert choose(here, format_, python=program) == (program, False)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("/bin/true", r"does not work as a Python \(exit 0: no message\): run it there"),
        ("/bin/ls", "does not work as a Python .exit 2: .*No such file"),
        ("/etc/passwd", "does not work as a Python .*ermission denied"),
        ("/no such/python3", "there is no /no such/python3: install Python 3.10 or newer as PYTHON there"),
    ],
)
def test_what_is_no_python_is_told(here: LocalTransport, program: str, says: str) -> None:
    with pytest.raises(MpaError, match=says) as caught:
        choose(here, "onnx", python=program)
    assert str(caught.value).isprintable()


def test_a_python_with_the_home_of_another(here: LocalTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(MpaError, match="does not work as a Python .*: run it there to see why"):
        choose(here, "onnx")


def test_a_server_is_taken_where_it_was_named_or_python_cannot(
    here: LocalTransport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert choose(here, "gguf", server="/bin/sh") == ("/bin/sh", True)
    (tmp_path / "text").write_text("no program")
    for path in ("/nowhere/llama-server", str(tmp_path)):
        with pytest.raises(MpaError, match=f"on local, there is no program {path}: build llama-server for it"):
            choose(here, "gguf", server=path)
    with pytest.raises(MpaError, match="text may not be started: run chmod .x there, or copy it to .* without noexec"):
        choose(here, "gguf", server=str(tmp_path / "text"))
    with pytest.raises(MpaError, match="llama-server runs GGUF, not onnx"):
        choose(here, "onnx", server="/bin/sh")
    monkeypatch.setattr(device_run.sys, "executable", "/nowhere/python3")
    assert choose(here, "gguf", fallback="/bin/sh") == ("/bin/sh", True)
    with pytest.raises(MpaError, match="there is no /nowhere/python3"):
        choose(here, "onnx", fallback="/bin/sh")


def test_small_files_there_and_back(here: LocalTransport, tmp_path: Path) -> None:
    there = f"{here.root}/it's a folder/a;b.json"
    (tmp_path / "order.json").write_text('{"é": 1}')
    here.push(tmp_path / "order.json", there, timeout_s=10)
    fetch(here, there, tmp_path / "back.json")
    assert (tmp_path / "back.json").read_text() == '{"é": 1}'
    fetch(here, f"{here.root}/not there", tmp_path / "back.json")
    assert not (tmp_path / "back.json").exists()


class Warm:
    """A device that cools by ten degrees each time it is asked."""

    name = "warm"

    def __init__(self, degrees: list[float]) -> None:
        self.degrees = degrees

    def checked(self, what: str, command: str, **_: object) -> str:
        temp = self.degrees.pop(0) if len(self.degrees) > 1 else self.degrees[0]
        zones = f'[{{"type": "cpu-thermal", "temp_c": {temp}}}]' if temp else "[]"
        return f'{{"schema_version": 1, "zones": {zones}, "thermal_zones": {zones}}}'


def test_the_wait_for_a_cool_device_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    cooling = Warm([70.0, 60.0, 50.0, 40.0])
    cool_down(cooling, "/b", 55.0, 300, poll_s=0.0)
    assert cooling.degrees == [40.0]
    assert "70 C; waiting at most 300 s for 55 C" in capsys.readouterr().err
    cool_down(Warm([70.0]), "/b", 55.0, 0, poll_s=0.0)
    assert "still 70 C after 0 s" in capsys.readouterr().err
    cool_down(Warm([0.0]), "/b", 55.0, 300, poll_s=0.0)
    cool_down(Warm([99.0]), "/b", None, 300, poll_s=0.0)
    assert capsys.readouterr().err == ""
