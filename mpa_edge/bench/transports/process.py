"""One program at a time: its input and output are files, its whole process group ends with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import IO

from mpa_edge.bench.transports import Done

POLL_S = 0.5


class TooSlowError(Exception):
    """It ran longer than it may, or moved no byte for too long. Its processes are gone."""


def call(
    argv: list[str],
    *,
    timeout_s: float,
    stdin: bytes | IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    stall_s: float | None = None,
) -> Done:
    """Run a program to its end. TooSlowError past `timeout_s`, or where no byte moved for `stall_s`.

    Files, not pipes: a helper that the program leaves behind (adb's server) cannot keep us waiting for their end.
    Raises FileNotFoundError where there is no such program.
    """
    with _as_file(stdin) as given, tempfile.TemporaryFile() as kept, tempfile.TemporaryFile() as complaints:
        out = stdout or kept
        process = subprocess.Popen(
            argv, stdin=given, stdout=out, stderr=complaints, start_new_session=True, env=os.environ | {"LC_ALL": "C"}
        )
        try:
            _wait(process, timeout_s, stall_s, [given, out] if given else [out])
        finally:
            end_group(process)
        return Done(process.returncode, b"" if stdout else _content(kept), _content(complaints))


@contextlib.contextmanager
def _as_file(stdin: bytes | IO[bytes] | None) -> Iterator[IO[bytes]]:
    if stdin is None:
        with open(os.devnull, "rb") as nothing:
            yield nothing
    elif isinstance(stdin, bytes):
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            yield file
    else:
        yield stdin


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _wait(process: subprocess.Popen[bytes], timeout_s: float, stall_s: float | None, files: list[IO[bytes]]) -> None:
    """Wait for the end; parent and child share the offset of a file, which shows how far the child is."""
    now = time.monotonic()
    deadline, moved, seen = now + timeout_s, now, _offsets(files)
    while True:
        slice_s = min(POLL_S, deadline - now) if stall_s else deadline - now
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(slice_s, 0.0))
            return
        now, offsets = time.monotonic(), _offsets(files)
        if offsets != seen:
            moved, seen = now, offsets
        if now >= deadline or (stall_s and now - moved > stall_s):
            raise TooSlowError


def _offsets(files: list[IO[bytes]]) -> list[int]:
    # a device file (/dev/null) has no offset worth the name, and says 0
    return [os.lseek(file.fileno(), 0, os.SEEK_CUR) for file in files]


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a program with everything of its process group, and wait for it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
