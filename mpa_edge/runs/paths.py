"""Where the package may read, write and delete: below a root, and never through a link that leads out of it.

Run folders, exports and buckets come from other people too. A name that stands in one of their documents is resolved
by `inside`, a folder is checked by `require_plain` before work begins in it, and files are removed, moved, made and
changed in place only by the functions here: none of them follows a link.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mpa_edge.errors import MpaError, OutsideError

COPIED_BYTES = 1 << 20
STAGED_SUFFIX = ".staged"
"""Ending of our own folders of links: they are only made and removed."""


def inside(root: Path, name: str) -> Path:
    """The path of `name` below `root`, which may itself be a link. OutsideError where the name or a link leads out."""
    from mpa_edge.types import is_inside  # loads pydantic, which `mpa-edge --help` does without

    path = root / name
    if not is_inside(name) or os.path.realpath(path) != os.path.normpath(os.path.join(os.path.realpath(root), name)):
        raise OutsideError(f"{name!r:.200} leads out of {root}: do not use this folder, or delete what names it")
    return path


@contextmanager
def names_in(document: Path) -> Iterator[None]:
    """Begin the error about a name that leads out with the document that it stands in."""
    try:
        yield
    except OutsideError as error:
        raise OutsideError(f"{document}: {error}") from error


def require_plain(root: Path) -> None:
    """MpaError where anything below a folder is a link, a pipe or a device; nothing where the folder is not there.

    `root` itself may be a link: a run may well be on another disk.
    """
    waiting = [str(root)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting += [] if entry.name.endswith(STAGED_SUFFIX) else [entry.path]
                elif not entry.is_file(follow_symlinks=False):
                    raise _not_plain(entry.path, is_link=entry.is_symlink())


def _not_plain(path: str | Path, *, is_link: bool) -> MpaError:
    what = "a link, and what it leads to may not be yours" if is_link else "no ordinary file"
    return MpaError(f"{path} is {what}: delete it, or put a copy of what you need in its place")


def remove(path: Path, *, quietly: bool = False) -> None:
    """Remove a file, a folder with all that is in it, or a link but not what it leads to; nothing where nothing is.

    MpaError where that is not possible; `quietly`: what cannot be removed stays.
    """
    try:
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        except (IsADirectoryError, PermissionError):  # the latter also for a folder, on other systems than Linux
            if path.is_symlink() or not path.is_dir():
                raise
            shutil.rmtree(path)  # follows no link
    except OSError as error:
        if not quietly:
            raise MpaError(f"cannot remove {path} ({error.strerror}): remove it yourself, and rerun") from error


def move(path: Path, to: Path) -> None:
    """Give a file or folder another name on the same disk. A file or a link that has the name is replaced.

    MpaError where a folder is in the place of a file, or the other way round.
    """
    try:
        os.replace(path, to)
    except (IsADirectoryError, NotADirectoryError) as error:
        raise MpaError(f"cannot replace {to} ({error.strerror}): remove it yourself, and rerun") from error


def copy(path: Path, to: Path) -> None:
    """Copy the content of a file; what is at `to` is replaced, never written to."""
    with path.open("rb") as source, new_file(to) as file:
        shutil.copyfileobj(source, file, COPIED_BYTES)


def new_file(path: Path) -> IO[bytes]:
    """A file to write, open; what had the name before is removed, never written to."""
    remove(path)
    return path.open("xb")


def open_in_place(path: str | Path, flags: int = os.O_RDWR) -> int:
    """The `opener` for a file that is changed where it stands; it is made where it is missing. Returns a descriptor.

    MpaError for a link, for one of several names of a file, and for what is no file: another file would be changed.
    """
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno == errno.EISDIR:
            raise MpaError(f"{path} is a folder: name a file") from error
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _not_plain(path, is_link=error.errno == errno.ELOOP) from error
        raise
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    raise _not_plain(path, is_link=stat.S_ISREG(status.st_mode))
