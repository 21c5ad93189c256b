from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from mpa_edge import __version__
from mpa_edge.cli import main as cli
from mpa_edge.cli._options import verbose_option
from mpa_edge.errors import MpaError, VerificationError

ROOT = Path(cli.__file__).parent.parent.parent
HEAVY = ("torch", "transformers", "pydantic", "pyarrow", "rich", "ruamel", "numpy", "PIL", "psutil")


def mpa_edge(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "mpa_edge", *argv], capture_output=True, text=True, env=env, **options)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    """command(function) makes `mpa-edge probe` call that function."""

    def add(function) -> None:
        probe = click.command("probe")(verbose_option(function))
        monkeypatch.setattr(cli, "command_names", lambda: ["probe"])
        monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, ctx, name: probe)

    return add


def raising(error: BaseException):
    def function() -> None:
        raise error

    return function


def test_help_is_fast_and_light() -> None:
    """Under 0.3 s of wall time; the best of five, because other things run on the machine."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        assert mpa_edge("--help").returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.3, seconds
    code = "import sys\nfrom mpa_edge.cli.main import exit_code\nexit_code(['--help'])\n"
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_shows_every_command_once_and_no_other() -> None:
    text = mpa_edge("--help").stdout
    commands = text.split("Options:")[0]
    shown = re.findall(r"^  ([a-z][a-z-]*)  +\S", commands, re.M)
    assert sorted(shown) == cli.command_names()
    for line in re.findall(r"^  mpa-edge (\S+)", text, re.M):
        assert line in cli.command_names()


@pytest.mark.parametrize("name", cli.command_names())
def test_every_command_has_a_summary_and_is_a_click_command(name: str) -> None:
    assert 10 < len(cli.summary(name)) < 80
    with click.Context(cli.main) as ctx:
        found = cli.main.get_command(ctx, name)
    assert found is not None
    assert found.name == name


def test_no_command_is_help() -> None:
    done = mpa_edge()
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: mpa-edge" in done.stdout


def test_version() -> None:
    assert mpa_edge("--version").stdout == f"mpa-edge, version {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["lst"], "did you mean 'list'?"),
        (["zzzzz"], "see mpa-edge --help"),
        (["list", "--zz"], "--zz"),
        (["copy"], "NAME"),
    ],
)
def test_usage_errors_exit_2_and_name_what_was_meant(argv: list[str], hint: str) -> None:
    done = mpa_edge(*argv)
    assert done.returncode == 2
    assert hint in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (MpaError("it broke: fix it"), 1, "error: it broke: fix it\n"),
        (MpaError("two\nlines"), 1, "error: two lines\n"),
        (VerificationError("differs: merge again"), 3, "error: differs: merge again\n"),
        (KeyboardInterrupt(), 130, "interrupted: rerun to resume\n"),
        (OSError(28, "No space left on device"), 1, "error: disk full at"),
        (MemoryError(), 1, "error: out of memory: close other programs or lower batch_size"),
        (RuntimeError("boom"), 1, "error: unexpected RuntimeError: boom (rerun with -v"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(command, capsys, error: BaseException, code: int, text: str) -> None:
    command(raising(error))
    assert cli.exit_code(["probe"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(text)
    assert captured.err.count("\n") == 1


HOSTILE = "a\x1b]0;owned\x07\x1b[2J\x9b31m\u202eb\u2066\udcff\rc"


@pytest.mark.parametrize("verbose", [(), ("-v",)])
def test_names_of_other_people_do_not_control_the_terminal(command, capsys, verbose: tuple[str, ...]) -> None:
    command(raising(MpaError(f"no device {HOSTILE}: name another")))
    assert cli.exit_code(["probe", *verbose]) == 1
    assert "error: no device a\\u001b]0;owned\\u0007\\u001b[2J\\u009b31m\\u202eb\\u2066\\udcff c: name" in (
        err := capsys.readouterr().err
    )
    assert all(one.isprintable() or one == "\n" for one in err)


def test_verbose_shows_the_traceback(command, capsys) -> None:
    command(raising(MpaError("it broke: fix it")))
    assert cli.exit_code(["probe", "-v"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: it broke: fix it\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m mpa_edge show minicharts --kind recipes --json | {{ exec 0<&-; sleep 1; }}; "
        "echo ${PIPESTATUS[0]}",
        shell=True,
        executable="/bin/bash",
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "141"
    assert done.stderr == ""


def test_ctrl_c_is_130() -> None:
    code = "import time, mpa_edge.cli.main as m, click\n"
    code += "p = click.command('probe')(lambda: (print('on', flush=True), time.sleep(30)))\n"
    code += "m.command_names = lambda: ['probe']\nm.LazyGroup.get_command = lambda s, c, n: p\n"
    code += "m.sys.exit(m.exit_code(['probe']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.strip() == "interrupted: rerun to resume"


def test_several_reasons_are_several_lines() -> None:
    error = cli.error_line(VerificationError("another model\n  decoder: too far\n  vision encoder: too far"))
    assert error.splitlines()[1:] == ["  decoder: too far", "  vision encoder: too far"]
    assert cli.error_line(MpaError("one\n line")) == "one line"
