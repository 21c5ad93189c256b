"""What a GGUF file says it holds, read with limits: nothing of it is believed before it fits the file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Weights are never touched, long lists are stepped
over, and a hostile file ends in an error before it costs time or memory.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError

MAGIC, VERSIONS = b"GGUF", (2, 3)
MAX_TENSORS, MAX_VALUES, MAX_DIMENSIONS = 65_536, 4_096, 4
MAX_NAME_BYTES, MAX_TEXT_BYTES = 1_024, 8_000_000
MAX_LIST_ITEMS, MAX_ALL_ITEMS, KEPT_ITEMS = 1_000_000, 2_000_000, 64
MAX_ALIGNMENT = 4_096

# id -> name, weights in a block, bytes of a block (ggml.h)
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
BLOCKS = {name: (weights, size_bytes) for name, weights, size_bytes in TYPES.values()}

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9


@dataclass(frozen=True)
class LongList:
    """A list of metadata that was stepped over because of its length."""

    n: int
    """How many items it has."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a GGUF file."""

    name: str
    """As llama.cpp calls it."""
    shape: tuple[int, ...]
    """As numpy and torch write it: rows first. The file has it the other way round."""
    type: str
    """f32, f16, q8_0, ..."""
    offset: int
    """Where its bytes start, counted from the start of the file."""
    n_bytes: int
    """How many there are."""

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The front of a GGUF file."""

    metadata: dict[str, Any]
    """Numbers, texts and short lists by key; a long list as `LongList`."""
    tensors: tuple[TensorInfo, ...]
    """In the order of the file."""
    file_bytes: int
    """Size of the whole file."""
    data_offset: int
    """Where the weights start."""


class _BadFileError(Exception):
    """The reason why a file is not what it says."""


def read_header(path: Path) -> Header:
    """The header of a GGUF file. MpaError where the file is missing, damaged, cut off, or asks for too much."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _Reader(view).header()
    except (_BadFileError, ValueError) as error:
        reason = error if isinstance(error, _BadFileError) else "it is empty"
        raise MpaError(f"{path} is no GGUF file to trust ({reason}): copy it again, or export again") from error
    except OSError as error:
        raise MpaError(f"cannot read {path} ({error.strerror}): copy it again, or export again") from error


class _Reader:
    """Walks over a header; every step is checked against the size of the file."""

    def __init__(self, view: mmap.mmap) -> None:
        self._view, self._size, self._at, self._items = view, len(view), 0, 0

    def header(self) -> Header:
        magic, version = self._take(4), self._number("<I")
        if magic != MAGIC or version not in VERSIONS:
            raise _BadFileError("its first bytes are not GGUF version 2 or 3")
        n_tensors, n_values = self._count(MAX_TENSORS, 24, "tensors"), self._count(MAX_VALUES, 13, "values")
        metadata = self._metadata(n_values)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment % 8:
            raise _BadFileError(f"alignment {alignment!r}")
        raw = [self._tensor() for _ in range(n_tensors)]
        start = -(-self._at // alignment) * alignment
        tensors = tuple(self._placed(one, start, alignment) for one in raw)
        if len({one.name for one in tensors}) != n_tensors:
            raise _BadFileError("two tensors of one name")
        return Header(metadata, tensors, self._size, start)

    def _metadata(self, n_values: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(n_values):
            key = self._text(MAX_NAME_BYTES)
            if key in found:
                raise _BadFileError(f"key '{key[:64]}' twice")
            found[key] = self._value(self._number("<I"))
        return found

    def _value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _TEXT:
            return self._text(MAX_TEXT_BYTES)
        if kind == _LIST:
            return self._list()
        raise _BadFileError(f"unknown kind of value {kind}")

    def _list(self) -> tuple[Any, ...] | LongList:
        kind = self._number("<I")
        if kind not in _NUMBERS and kind != _TEXT:
            raise _BadFileError(f"a list of kind {kind}")
        item_bytes = 8 if kind == _TEXT else struct.calcsize(_NUMBERS[kind])
        n = self._count(MAX_LIST_ITEMS, item_bytes, "items of a list")
        self._items += n
        if self._items > MAX_ALL_ITEMS:
            raise _BadFileError("too many items in lists")
        if n <= KEPT_ITEMS:
            return tuple(self._value(kind) for _ in range(n))
        if kind == _TEXT:
            self._step_over_texts(n)
        else:
            self._step(n * item_bytes)
        return LongList(n)

    def _step_over_texts(self, n: int) -> None:
        view, at, length_of = self._view, self._at, struct.Struct("<Q").unpack_from
        for _ in range(n):
            if at > self._size - 8:
                raise _BadFileError("it ends too early")
            at += 8 + length_of(view, at)[0]
        self._at = at
        self._step(0)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, n_dimensions = self._text(MAX_NAME_BYTES), self._number("<I")
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            raise _BadFileError(f"tensor '{name[:64]}' of {n_dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(n_dimensions))[::-1]
        return name, shape, self._number("<I"), self._number("<Q")

    def _placed(self, raw: tuple[str, tuple[int, ...], int, int], start: int, alignment: int) -> TensorInfo:
        name, shape, kind, offset = raw
        if kind not in TYPES:
            raise _BadFileError(f"tensor '{name[:64]}' of unknown type {kind}")
        type_name, block, block_bytes = TYPES[kind]
        if 0 in shape or shape[-1] % block:
            raise _BadFileError(f"tensor '{name[:64]}' of shape {shape} as {type_name}")
        n_bytes = prod(shape) // block * block_bytes
        if offset % alignment or start + offset + n_bytes > self._size:
            raise _BadFileError(f"tensor '{name[:64]}' lies outside the file: it may be cut off")
        return TensorInfo(name, shape, type_name, start + offset, n_bytes)

    def _count(self, most: int, least_bytes: int, what: str) -> int:
        n = self._number("<Q")
        if n > most or n * least_bytes > self._size - self._at:
            raise _BadFileError(f"{n} {what}")
        return n

    def _text(self, most: int) -> str:
        return self._take(self._count(most, 1, "bytes of text")).decode("utf-8", "replace")

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _take(self, n: int) -> bytes:
        start = self._at
        self._step(n)
        return self._view[start : self._at]

    def _step(self, n: int) -> None:
        self._at += n
        if self._at > self._size:
            raise _BadFileError("it ends too early")
