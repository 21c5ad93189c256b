from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mpa_edge.errors import MpaError, VerificationError
from mpa_edge.runs.isolation import disk_guard, run_isolated

pytestmark = pytest.mark.slow


def add(a: int, b: int) -> int:
    print("not on stdout")
    return a + b


def fill(megabytes: int) -> int:
    return int(np.ones(megabytes * 1_000_000, np.uint8).sum())


def refuse() -> None:
    raise VerificationError("wrong: mend it")


def crash() -> None:
    raise KeyError("x")


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def threads() -> str:
    return os.environ["OMP_NUM_THREADS"]


def sleep() -> None:
    time.sleep(60)


def test_the_result_comes_back_and_stdout_stays_clean(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_isolated(add, 2, 3)[0] == 5
    out, err = capfd.readouterr()
    assert (out, err) == ("", "not on stdout\n")


def test_peak_memory_is_the_child_s_own() -> None:
    small, large = (run_isolated(fill, megabytes)[1] for megabytes in (1, 300))
    assert 200e6 < large - small < 400e6


def test_threads_reach_the_libraries() -> None:
    assert run_isolated(threads, threads=3)[0] == "3"


def test_our_errors_come_through_as_they_are() -> None:
    with pytest.raises(VerificationError, match="wrong: mend it"):
        run_isolated(refuse)


def test_other_errors_name_what_happened() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'x'"):
        run_isolated(crash)


def test_a_killed_process_is_an_error_in_one_line() -> None:
    with pytest.raises(MpaError, match="kill_itself was killed, most likely because memory ran out: free memory"):
        run_isolated(kill_itself)


def test_an_interrupt_ends_the_child_too() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.alarm(2)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run_isolated(sleep)
        assert time.monotonic() - started < 20
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def orphan_maker(pid_file: str) -> None:
    run_isolated(write_pid_and_sleep, pid_file)


def write_pid_and_sleep(pid_file: str) -> None:
    with open(pid_file, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(60)


def test_a_killed_parent_takes_its_child_along(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = "from tests.runs.test_isolation import orphan_maker\n"
    code += f"if __name__ == '__main__': orphan_maker({str(pid_file)!r})"
    script = tmp_path / "parent.py"
    script.write_text(code)
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(root)})
    deadline = time.monotonic() + 120
    while not (pid_file.is_file() and pid_file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    child = int(pid_file.read_text())
    while running(child):
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.05)


def running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        RuntimeError("[enforce fail at inline_container.cc:858] . unexpected pos 64 vs 0"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_whoever_met_it(tmp_path, error) -> None:
    said = "disk full at .*: free .* MB, then rerun"
    with pytest.raises(MpaError, match=said), disk_guard(tmp_path, 5_000_000):
        raise error


def test_other_errors_go_through_the_disk_guard(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="shape"), disk_guard(tmp_path, 1):
        raise RuntimeError("shape mismatch")
    with pytest.raises(PermissionError), disk_guard(tmp_path, 1):
        raise PermissionError(13, "denied")
