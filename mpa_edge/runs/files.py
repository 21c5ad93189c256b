"""Atomic files, content hashes and disk space."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from mpa_edge.errors import MachineError, MpaError
from mpa_edge.runs.paths import copy, move, new_file, remove

TEMP_SUFFIX = ".tmp"
LEFTOVER = re.compile(rf"\..+[-.]\d+{re.escape(TEMP_SUFFIX)}")
"""Names of temporary files; all of them have the number of the process that writes."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MB = 1_000_000
HASHED_AT_ONCE = 2**18


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return sha256_stream(file)


def sha256_stream(file: IO[bytes]) -> str:
    """Hex digest of what is left of a stream. Devices run this with Python 3.10, which has no hashlib.file_digest."""
    digest = hashlib.sha256()
    while part := file.read(HASHED_AT_ONCE):
        digest.update(part)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of a value, independent of key order. Pydantic models are taken by their fields."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def sha256_list(values: Iterable[Any]) -> str:
    """The same digest as `sha256_json` of a list, without the list in memory.

    >>> sha256_list(iter([["a", 1], True])) == sha256_json([["a", 1], True])
    True
    """
    digest, between = hashlib.sha256(b"["), b""
    for value in values:
        digest.update(between + json.dumps(value, sort_keys=True, ensure_ascii=True).encode())
        between = b", "
    digest.update(b"]")
    return digest.hexdigest()


def free_bytes(folder: Path) -> int:
    """Free space for this user on the disk of a folder that need not exist yet."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def require_free(folder: Path, need_bytes: int) -> None:
    """Raise MpaError if the disk has less than `need_bytes` free."""
    if free_bytes(folder) < need_bytes:
        raise disk_full(folder, need_bytes)


def disk_full(folder: Path, need_bytes: int) -> MachineError:
    """The error for a write that did not fit."""
    short = need_bytes
    with suppress(OSError):
        short = max(need_bytes - free_bytes(folder), min(need_bytes, MB))
    return MachineError(f"disk full at {folder}: free {max(1, -(-short // MB))} MB, then rerun; nothing is lost")


@contextmanager
def disk_errors(folder: Path, need_bytes: int) -> Iterator[None]:
    """Turn a full disk (or a quota, or a file size limit) inside the block into an MpaError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(folder, need_bytes) from error
        raise


def make_folder(folder: Path) -> Path:
    """Create a folder with its parents. Raises MpaError where that is not possible."""
    try:
        with disk_errors(folder, MB):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MpaError(f"cannot make folder {folder} ({error.strerror}): choose another --out") from error
    return folder


def fsync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path, need_bytes: int = MB, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that gets its name only when it is complete and on the disk; after an error nothing is left.

    `need_bytes` is what the disk-full message asks for. Without `sync` a power cut may lose it, a kill does not.
    """
    temp = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}{TEMP_SUFFIX}")
    try:
        with disk_errors(path.parent, need_bytes):
            with new_file(temp) as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            move(temp, path)
            if sync:
                fsync_folder(path.parent)
    finally:
        remove(temp, quietly=True)


def link_or_copy(path: Path, to: Path) -> None:
    """Give a file a second name, without a copy where the disk supports hard links."""
    temp = to.with_name(f".{to.name}.{os.getpid()}{TEMP_SUFFIX}")
    remove(temp)
    try:
        os.link(path, temp)
    except OSError:
        copy(path, temp)
    move(temp, to)


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a whole file atomically; `sync` as in `atomic_write`."""
    with atomic_write(path, len(data), sync=sync) as file:
        file.write(data)


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Write a JSON document (or a pydantic model) atomically, with sorted keys and a final newline."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if not is_utf8(text):  # a path, which can hold any bytes: JSON has escapes for them
        text = json.dumps(plain, indent=2, sort_keys=True) + "\n"
    write_bytes(path, text.encode(), sync=sync)


def is_utf8(text: str) -> bool:
    """Whether a text is all characters: a path can also hold bytes that are not UTF-8, as halves of surrogate pairs.

    >>> is_utf8("b\u00fc"), is_utf8(os.fsdecode(b"b\\xfc"))
    (True, False)
    """
    return not any("\ud800" <= char <= "\udfff" for char in text)


def read_json(path: Path) -> Any:
    """A JSON document; None where the file is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def sweep(folder: Path) -> int:
    """Remove the temporary files that killed processes left in a folder tree; returns how many."""
    leftovers = [path for path in folder.rglob(f".*{TEMP_SUFFIX}") if LEFTOVER.fullmatch(path.name)]
    for path in leftovers:
        remove(path)
    return len(leftovers)
