"""The images of a folder as a compact list: about 40 bytes each, because there may be millions."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import eq
from pathlib import Path
from typing import overload

from mpa_edge.types import Drop

ID_BYTES = 8
DUPLICATE = "duplicate image"
HELD_OUT = "held out for evaluation"


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image file, by its suffix, of the images folder."""

    id: str
    """First 16 hex digits of the sha256 of the content, or of the name where the content cannot be read."""
    name: str
    """Path relative to the folder, with forward slashes."""
    root: Path
    """The folder."""
    drop: Drop | None = None
    """Why it is not used: duplicate, unreadable, unsupported; None where it is used."""

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.root / self.name


class ImageIndex(Sequence[ImageEntry]):
    """The entries of one folder, stored compactly and built on access. A slice is a list: keep it small."""

    def __init__(self, root: Path, entries: Iterable[ImageEntry] = ()) -> None:
        self.root = root
        self._names, self._ends, self._ids = bytearray(), array("Q"), bytearray()
        self._drops: dict[int, Drop] = {}
        for entry in entries:
            self.append(entry)

    def append(self, entry: ImageEntry) -> None:
        """Add an entry at the end."""
        if entry.drop is not None:
            self._drops[len(self._ends)] = entry.drop
        self._names += entry.name.encode()
        self._ends.append(len(self._names))
        self._ids += bytes.fromhex(entry.id)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> ImageEntry: ...
    @overload
    def __getitem__(self, at: slice) -> list[ImageEntry]: ...
    def __getitem__(self, at: int | slice) -> ImageEntry | list[ImageEntry]:
        if isinstance(at, slice):
            return [self._entry(i) for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        return self._entry(at % len(self))

    def __iter__(self) -> Iterator[ImageEntry]:
        return map(self._entry, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    def _entry(self, i: int) -> ImageEntry:
        digest = self._ids[i * ID_BYTES : (i + 1) * ID_BYTES].hex()
        return ImageEntry(digest, self._name(i).decode(), self.root, self._drops.get(i))

    def _name(self, i: int) -> bytes:
        return bytes(self._names[self._ends[i - 1] if i else 0 : self._ends[i]])

    def sorted_by(self, key: Callable[[bytes], bytes] = bytes) -> ImageIndex:
        """The entries sorted by the key of their UTF-8 names; nothing is copied where they are in order already."""
        keys = (key(self._name(i)) for i in range(len(self)))
        if all(before <= after for before, after in pairwise(keys)):
            return self
        order = sorted(range(len(self)), key=lambda i: key(self._name(i)))
        return ImageIndex(self.root, map(self._entry, order))

    def mark_held_out(self, ids: Collection[str]) -> None:
        """Set the `drop` of each usable entry whose id is among the given ones."""
        import numpy as np

        wanted = np.frombuffer(bytes.fromhex("".join(sorted(ids))), dtype=np.uint64)
        for i in np.flatnonzero(np.isin(np.frombuffer(bytes(self._ids), dtype=np.uint64), wanted)).tolist():
            self._drops.setdefault(i, Drop(HELD_OUT))

    def mark_duplicates(self) -> None:
        """Set the `drop` of each usable entry whose content an earlier entry has."""
        import numpy as np

        ids = np.frombuffer(bytes(self._ids), dtype=np.uint64)
        usable = np.setdiff1d(np.arange(len(ids)), np.fromiter(self._drops, dtype=np.int64), assume_unique=True)
        order = usable[np.argsort(ids[usable], kind="stable")]
        again = np.flatnonzero(ids[order[1:]] == ids[order[:-1]]) + 1
        first: dict[int, int] = {}
        for at in again.tolist():
            i, before = int(order[at]), int(order[at - 1])
            first[i] = first.get(before, before)
            self._drops[i] = Drop(DUPLICATE, f"same content as {self._name(first[i]).decode()}")


class Shards:
    """Consecutive groups of `size` entries; each is built when it is accessed."""

    def __init__(self, entries: Sequence[ImageEntry], size: int) -> None:
        self._entries, self._size = entries, size

    def __len__(self) -> int:
        return -(-len(self._entries) // self._size)

    def __getitem__(self, at: int) -> Sequence[ImageEntry]:
        if not 0 <= at < len(self):
            raise IndexError(at)
        return self._entries[at * self._size : (at + 1) * self._size]

    def size_of(self, at: int) -> int:
        """Number of entries in a shard, without building them."""
        return min(self._size, len(self._entries) - at * self._size)
