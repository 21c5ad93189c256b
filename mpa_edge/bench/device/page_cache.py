"""Model files out of the page cache, so that a load is a cold one; and whether that worked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

SAMPLED_EVERY_BYTES = 2**22


def drop(paths: Iterable[Path]) -> bool:
    """Ask the kernel to forget what it holds of some files; True only where it is proven that it did.

    A file that somebody has mapped stays, and so does one in a file system that lives in memory. Whoever is not asked
    to wait is told at once what is not in memory (RWF_NOWAIT), but Linux reads it soon after: hence forget again.
    """
    found = list(paths)
    for path in found:
        _forget(path)
    cold = not any(_in_memory(path) for path in found)
    for path in found:
        _forget(path)
    return cold and bool(found)


def _forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)  # what was just sent is dirty, and dirty pages stay
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _in_memory(path: Path) -> bool:
    """Whether any sampled page is at hand without waiting; True where the system does not say."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start in range(0, os.fstat(descriptor).st_size, SAMPLED_EVERY_BYTES):
            try:
                os.preadv(descriptor, [bytearray(1)], start, os.RWF_NOWAIT)
            except BlockingIOError:
                continue
            return True
        return False
    except (AttributeError, OSError):
        return True
    finally:
        os.close(descriptor)
