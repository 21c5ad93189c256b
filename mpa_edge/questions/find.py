"""Where the files of a benchmark are: in the folder that was named, or a little below it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mpa_edge.errors import MpaError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DEPTH = ("", "*/", "*/*/")


def find_all(folder: Path, files: Sequence[str]) -> dict[str, Path] | None:
    """Each file by its name, in the folder or up to two levels below it; None where one of them is not there."""
    found = {name: path for name in files if (path := find_one(folder, name)) is not None}
    return found if files and len(found) == len(files) else None


def find_one(folder: Path, name: str) -> Path | None:
    """The first file of that (relative) name, the nearest to the folder first."""
    hits = (folder.glob(f"{depth}{glob_safe(name)}") for depth in DEPTH)
    return next((path for paths in hits for path in sorted(paths) if path.is_file()), None)


def glob_safe(name: str) -> str:
    """A name as a pattern that matches it alone."""
    return re.sub(r"([\[*?])", r"[\1]", name)


def parquet_of(data: Path, names: Sequence[str]) -> list[Path]:
    """Parquet files of a split, as hubs name them; a parquet file that was named itself is taken as it is."""
    if data.is_file():
        return [data] if data.suffix == ".parquet" else []
    patterns = (f"{depth}{shape}" for depth in DEPTH for name in names for shape in _shapes(name))
    return sorted({path for pattern in patterns for path in data.glob(pattern) if path.is_file()})


def _shapes(name: str) -> tuple[str, ...]:
    """`test-00000-of-00002.parquet`, `test.parquet`, `test/0000.parquet`."""
    return f"{name}-*.parquet", f"{name}.parquet", f"{name}/*.parquet"


def hub_patterns(names: Sequence[str]) -> list[str]:
    """The same for the file list of a hub, where `*` also stands for slashes."""
    return [pattern for name in names for pattern in (f"{name}-*.parquet", f"*/{name}-*.parquet", f"*{name}/*.parquet")]


def read_document(path: Path) -> Any:
    """A JSON file. Raises MpaError that names it."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise MpaError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise MpaError(f"{path} is not JSON ({error}): download it again") from error


def inside(name: str) -> bool:
    """Whether a name that stands in a file leads nowhere but down.

    >>> [inside(name) for name in ("a/b.png", "", "/etc/x.png", "../x.png", "a\\0b")]
    [True, False, False, False, False]
    """
    parts = PurePosixPath(name).parts
    return bool(parts) and "\0" not in name and not PurePosixPath(name).is_absolute() and ".." not in parts


class Shelf:
    """Finds the pictures of a benchmark: which of the possible folders exist is looked up once."""

    def __init__(self, data: Path, beside: Sequence[Path], folders: Sequence[str]) -> None:
        roots = dict.fromkeys(root / folder for root in (*beside, data) for folder in folders)
        self._data = data
        self._roots = [root for root in roots if root.is_dir()]

    def place(self, name: str) -> str | None:
        """Path of a picture relative to the data folder; None where no folder has it."""
        if not inside(name):
            return None
        found = next((root / name for root in self._roots if (root / name).is_file()), None)
        return found.relative_to(self._data).as_posix() if found else None
