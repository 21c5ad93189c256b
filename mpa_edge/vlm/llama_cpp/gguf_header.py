"""What a GGUF file says it contains, read with limits: nothing is trusted before it is checked against the file's size.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Weights are never read, long lists are skipped, and a
malicious file ends in an error before it costs time or memory.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError

MAGIC, VERSIONS = b"GGUF", (2, 3)
MAX_TENSORS, MAX_VALUES, MAX_DIMENSIONS = 65_536, 4_096, 4
MAX_NAME_BYTES, MAX_TEXT_BYTES = 1_024, 8_000_000
MAX_LIST_ITEMS, MAX_ALL_ITEMS, KEPT_ITEMS = 1_000_000, 2_000_000, 64
MAX_ALIGNMENT = 4_096

# id -> name, weights per block, bytes per block (ggml.h)
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("f32", 1, 4),
    1: ("f16", 1, 2),
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    20: ("iq4_nl", 32, 18),
    23: ("iq4_xs", 256, 136),
    24: ("i8", 1, 1),
    25: ("i16", 1, 2),
    26: ("i32", 1, 4),
    27: ("i64", 1, 8),
    28: ("f64", 1, 8),
    30: ("bf16", 1, 2),
}

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a GGUF file."""

    name: str
    """In llama.cpp's naming."""
    shape: tuple[int, ...]
    """As in numpy and torch: rows first. The file stores it reversed."""
    type: str
    """f32, f16, q8_0, ..."""
    offset: int
    """Where its bytes start, counted from the start of the file."""
    n_bytes: int
    """How many there are."""


@dataclass(frozen=True)
class Header:
    """The front of a GGUF file."""

    metadata: dict[str, Any]
    """Numbers, texts and short lists by key; None for a list of more than 64 items."""
    tensors: tuple[TensorInfo, ...]
    """In the order of the file."""
    file_bytes: int
    """Size of the whole file."""


class _BadFileError(Exception):
    """The reason why a file is not valid."""


def read_header(path: Path) -> Header:
    """The header of a GGUF file. MpaError where the file is missing, damaged, truncated, or exceeds a limit."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _Reader(view).header()
    except (_BadFileError, ValueError) as error:
        reason = error if isinstance(error, _BadFileError) else "it is empty"
        raise MpaError(
            f"{path} is not a valid GGUF file ({reason}): copy it again, or rerun mpa-edge export"
        ) from error
    except OSError as error:
        raise MpaError(f"cannot read {path} ({error.strerror}): copy it again, or rerun mpa-edge export") from error


class _Reader:
    """Walks over a header; every step is checked against the size of the file."""

    def __init__(self, view: mmap.mmap) -> None:
        self._view, self._size, self._at, self._items = view, len(view), 0, 0

    def header(self) -> Header:
        if self._take(4) != MAGIC or self._number("<I") not in VERSIONS:
            raise _BadFileError("its first bytes are not GGUF version 2 or 3")
        n_tensors, n_values = self._count(MAX_TENSORS, 24, "tensors"), self._count(MAX_VALUES, 13, "values")
        metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = self._text(MAX_NAME_BYTES)
            if key in metadata:
                raise _BadFileError(f"key '{key[:64]}' twice")
            metadata[key] = self._value(self._number("<I"))
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment % 8:
            raise _BadFileError(f"alignment {alignment!r}")
        tensors = []
        for _ in range(n_tensors):  # their offsets count from the start of the weights, which is not known yet
            name, n_dimensions = self._text(MAX_NAME_BYTES), self._number("<I")
            if not 1 <= n_dimensions <= MAX_DIMENSIONS:
                raise _BadFileError(f"tensor '{name[:64]}' with {n_dimensions} dimensions")
            shape = tuple(self._number("<Q") for _ in range(n_dimensions))[::-1]
            kind, offset = self._number("<I"), self._number("<Q")
            if kind not in TYPES:
                raise _BadFileError(f"tensor '{name[:64]}' of unknown type {kind}")
            type_name, block, block_bytes = TYPES[kind]
            if 0 in shape or shape[-1] % block:
                raise _BadFileError(f"tensor '{name[:64]}' of shape {shape} as {type_name}")
            if offset % alignment:
                raise _BadFileError(f"tensor '{name[:64]}' at the unaligned offset {offset}")
            tensors.append(TensorInfo(name, shape, type_name, offset, prod(shape) // block * block_bytes))
        if len({tensor.name for tensor in tensors}) != n_tensors:
            raise _BadFileError("two tensors with one name")
        data_offset = -(-self._at // alignment) * alignment
        placed = tuple(replace(tensor, offset=data_offset + tensor.offset) for tensor in tensors)
        for tensor in placed:
            if tensor.offset + tensor.n_bytes > self._size:
                raise _BadFileError(f"tensor '{tensor.name[:64]}' is outside the file, which may be truncated")
        return Header(metadata, placed, self._size)

    def _value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _TEXT:
            return self._text(MAX_TEXT_BYTES)
        if kind != _LIST:
            raise _BadFileError(f"unknown type of value {kind}")
        kind = self._number("<I")
        if kind not in _NUMBERS and kind != _TEXT:
            raise _BadFileError(f"a list of type {kind}")
        item_bytes = 8 if kind == _TEXT else struct.calcsize(_NUMBERS[kind])
        n = self._count(MAX_LIST_ITEMS, item_bytes, "items of a list")
        self._items += n
        if self._items > MAX_ALL_ITEMS:
            raise _BadFileError("too many items in lists")
        if n <= KEPT_ITEMS:
            return tuple(self._value(kind) for _ in range(n))
        if kind != _TEXT:
            self._skip(n * item_bytes)
            return None
        view, at, length_of = self._view, self._at, struct.Struct("<Q").unpack_from  # local names for speed
        for _ in range(n):
            if at > self._size - 8:
                raise _BadFileError("it ends too early")
            at += 8 + length_of(view, at)[0]
        self._skip(at - self._at)
        return None

    def _count(self, most: int, least_bytes: int, what: str) -> int:
        n = self._number("<Q")
        if n > most or n * least_bytes > self._size - self._at:
            raise _BadFileError(f"{n} {what}")
        return int(n)

    def _text(self, most: int) -> str:
        return self._take(self._count(most, 1, "bytes of text")).decode("utf-8", "replace")

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _take(self, n: int) -> bytes:
        start = self._at
        self._skip(n)
        return self._view[start : self._at]

    def _skip(self, n: int) -> None:
        self._at += n
        if self._at > self._size:
            raise _BadFileError("it ends too early")
