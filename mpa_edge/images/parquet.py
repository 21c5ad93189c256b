"""Images in parquet files, as data sets on the Hugging Face Hub store them: `data/test-0.parquet#12` is that of row 12.

An image is bytes, or a struct of bytes and path. Files are read a few rows at a time, so that memory holds one row
group (100 rows in the Hub's files) and never the file.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from mpa_edge.types import Drop, is_inside

REFERENCE = re.compile(r"(.+\.parquet)#(\d+)", re.DOTALL)
COLUMNS = ("image", "images", "picture")
ROWS_AT_ONCE = 16
BUFFER_BYTES = 2**20


def is_parquet_row(path: str | Path) -> bool:
    """Whether a path names an image in a parquet file.

    >>> is_parquet_row("data/test-0.parquet#12"), is_parquet_row("data/12.png")
    (True, False)
    """
    return REFERENCE.fullmatch(str(path)) is not None


def parquet_row_bytes(path: str | Path) -> bytes | Drop:
    """The encoded image that `FILE.parquet#ROW` names, or why there is none."""
    import pyarrow as pa

    match = REFERENCE.fullmatch(str(path))
    if match is None:
        return Drop("unreadable file", "no FILE.parquet#ROW")
    try:
        return cell_bytes(_open_column(match[1]).value(int(match[2])), Path(match[1]).parent)
    except (OSError, pa.ArrowException, KeyError, IndexError) as error:
        _open_column.cache_clear()
        return Drop("unreadable file", " ".join(str(error).split())[:200])


def cell_bytes(value: Any, folder: Path) -> bytes | Drop:
    """The encoded image of one cell: bytes, a struct of bytes and path, or a list that begins with one of these.

    >>> cell_bytes({"bytes": b"x", "path": None}, Path())
    b'x'
    >>> cell_bytes(None, Path())
    Drop(reason='missing image', detail='')
    """
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict):
        named = value.get("path")
        value = value.get("bytes") or _file_bytes(folder, named)
    return value if isinstance(value, bytes) and value else Drop("missing image")


def _file_bytes(folder: Path, name: Any) -> bytes | None:
    """The content of a relative path in the folder of the parquet file; nothing outside of it is read."""
    found = folder / name if isinstance(name, str) and is_inside(name) else None
    return found.read_bytes() if found is not None and found.is_file() else None


def image_column(names: list[str]) -> str | None:
    """The column of the images; None where there is none."""
    return next((name for name in COLUMNS if name in names), None)


class ImageColumn:
    """The image column of one file; reading rows in order is cheap."""

    def __init__(self, path: str) -> None:
        import pyarrow.parquet as pq

        file = open(path, "rb")  # noqa: SIM115  (stays open; pyarrow takes no path that is not UTF-8)
        self._file = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        column = image_column(self._file.schema_arrow.names)
        if column is None:
            raise KeyError(f"no column {' or '.join(COLUMNS)}")
        self._column = column
        groups = (self._file.metadata.row_group(i).num_rows for i in range(self._file.metadata.num_row_groups))
        self._firsts = list(accumulate(groups, initial=0))
        self._held: list[Any] = []
        self._start = 0
        self._seek(0)

    def value(self, row: int) -> Any:
        """The cell of a row: bytes or a struct; IndexError where there is no such row."""
        if not 0 <= row < self._firsts[-1]:
            raise IndexError(f"no row {row}")
        end = self._start + len(self._held)
        if row < self._start or (row >= end and self._group(row) != self._group(end)):
            self._seek(self._group(row))
        while row >= self._start + len(self._held):
            self._start += len(self._held)
            self._held = next(self._ahead).column(0).to_pylist()
        return self._held[row - self._start]

    def _group(self, row: int) -> int:
        """The number of the row group of a row."""
        return bisect_right(self._firsts, row) - 1

    def _seek(self, group: int) -> None:
        """Go to the start of a row group."""
        groups = list(range(group, len(self._firsts) - 1))
        self._held, self._start = [], self._firsts[group]
        self._ahead = self._file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=[self._column])


@functools.lru_cache(maxsize=1)
def _open_column(path: str) -> ImageColumn:
    """One file is open at a time: questions come in the order of the files."""
    return ImageColumn(path)
