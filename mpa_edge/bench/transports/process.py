"""Run one program to its end, and retry what a broken link interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TypeVar

from mpa_edge.errors import MpaError
from mpa_edge.progress import say

T = TypeVar("T")
POLL_S = 0.1
# of what a program prints: a file of a device is at most as long, and no answer comes near it
MOST_BYTES = 80 << 20
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    rc: int
    """Its exit status."""
    stdout: bytes
    """Its standard output."""
    stderr: bytes
    """Its standard error."""


class LinkError(MpaError):
    """The link to the device is broken or too slow, which may be temporary: a job there continues meanwhile."""


class TooSlowError(Exception):
    """A program exceeded its time limit, or moved no byte for too long. Its processes were killed."""


class TooLongError(MpaError):
    """A program printed more than MOST_BYTES. Its processes were killed."""


def patiently(action: Callable[[], T], *, patience_s: float) -> T:
    """Retry after each LinkError, with growing waits, for `patience_s`; then raise the last LinkError."""
    deadline, wait_s = time.monotonic() + patience_s, FIRST_WAIT_S
    while True:
        try:
            return action()
        except LinkError as error:
            if time.monotonic() + wait_s > deadline:
                raise
            say(f"{error}; trying again in {wait_s:.0f} s")
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def call(
    argv: list[str], *, timeout_s: float, stdin: bytes = b"", stall_s: float | None = None, end: bytes | None = None
) -> Done:
    """Run a program to its end. TooSlowError after `timeout_s`, or where no byte moved for `stall_s`.

    TooLongError where it prints more than MOST_BYTES.
    end: what its output ends with; something that a login started may keep the program waiting after that.
    Files, not pipes: a helper that the program leaves behind (adb's server) cannot make us wait for it.
    Raises FileNotFoundError where there is no such program.
    """
    with contextlib.ExitStack() as stack:
        given, out, complaints = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(
            argv, stdin=given, stdout=out, stderr=complaints, start_new_session=True, env=os.environ | {"LC_ALL": "C"}
        )
        try:
            # the program shares the offsets of its files with us, which shows how far it is
            descriptors = [given.fileno(), out.fileno()]
            now = moved = time.monotonic()
            deadline, seen = now + timeout_s, [os.lseek(each, 0, os.SEEK_CUR) for each in descriptors]
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, min(POLL_S, deadline - now)))
                    break
                require_short(argv, out, complaints)
                if end and end in os.pread(out.fileno(), os.fstat(out.fileno()).st_size, 0):
                    break
                now, current = time.monotonic(), [os.lseek(each, 0, os.SEEK_CUR) for each in descriptors]
                if current != seen:
                    moved, seen = now, current
                if now >= deadline or (stall_s and now - moved > stall_s):
                    raise TooSlowError
        finally:
            end_group(process)
        require_short(argv, out, complaints)
        out.seek(0)
        complaints.seek(0)
        return Done(process.returncode, out.read(), complaints.read())


def require_short(argv: list[str], *outputs: IO[bytes]) -> None:
    """TooLongError where an output of a program is longer than MOST_BYTES."""
    if max(os.fstat(each.fileno()).st_size for each in outputs) > MOST_BYTES:
        raise TooLongError(
            f"what {argv[0]} runs on the device prints without end ({MOST_BYTES >> 20} MB so far): "
            "look there for what went wrong, then rerun"
        )


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a program with its whole process group, and wait for it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
