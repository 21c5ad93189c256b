"""The user's cache: folders that are made once, by one process, and get their name when they are complete."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from mpa_edge.errors import MpaError
from mpa_edge.runs.files import disk_errors, make_folder, require_free
from mpa_edge.runs.paths import move, remove

DONE = ".complete"


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/mpa-edge`, by default ~/.cache/mpa-edge. It need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpa-edge"


def made_once(name: str, make: Callable[[Path], None], need_bytes: int) -> Path:
    """The cache's folder `name`, made on first use. Safe when two processes call it at once, and when one is killed.

    Args:
        name: File name, different for different content.
        make: Fills an empty folder.
        need_bytes: What it writes; MachineError where the disk has no room for it.

    MpaError where this user cannot write to the cache.
    """
    cache = cache_folder()
    folder = cache / name
    if (folder / DONE).is_file():
        return folder
    make_folder(cache)
    try:
        opened = (cache / f".{name}.lock").open("w")
    except OSError as error:
        fix = "set XDG_CACHE_HOME to a folder that you can write to"
        raise MpaError(f"cannot write to the cache folder {cache} ({error.strerror}): {fix}") from error
    with opened as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / DONE).is_file():
            return folder
        # what a killed process left
        remove(folder)
        for leftover in cache.glob(f".{name}.*.tmp"):
            remove(leftover, quietly=True)
        with (
            disk_errors(cache, need_bytes),
            tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".tmp", dir=cache) as temp,
        ):
            require_free(cache, need_bytes)
            made = Path(temp) / "made"
            made.mkdir()
            make(made)
            (made / DONE).touch()
            move(made, folder)
    return folder
