"""One process at a time in a run folder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpa_edge.errors import MpaError
from mpa_edge.runs.files import MB, disk_errors, make_folder, sweep
from mpa_edge.runs.log import open_log
from mpa_edge.runs.paths import open_in_place

LOCK = ".lock"
ORPHAN_WAIT_S = 5.0
_held: dict[Path, int] = {}


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; the same process may enter again. Leftover temporary files are swept.

    Raises MpaError naming the process that holds it.
    """
    key = make_folder(folder).resolve()
    if key in _held:
        yield
        return
    with disk_errors(folder, MB):
        descriptor = open_in_place(key / LOCK)
    try:
        # children of a killed process get a moment to end
        deadline = time.monotonic() + ORPHAN_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                alive = not owner.isdigit() or Path(f"/proc/{owner}").exists() or not Path("/proc/self").exists()
                if alive or time.monotonic() > deadline:
                    raise MpaError(
                        f"{folder} is in use by process {owner}: wait for it, stop it, or choose another --out"
                    ) from error
                time.sleep(0.1)
        with disk_errors(folder, MB):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        _held[key] = descriptor
        sweep(key)
        open_log(key)
        yield
    finally:
        _held.pop(key, None)
        os.close(descriptor)
