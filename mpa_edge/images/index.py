"""The images of a folder as a list that stays small: some 40 bytes a picture, for there may be millions."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import Path
from typing import overload

from mpa_edge.types import Drop

ID_BYTES = 8
DUPLICATE = "duplicate image"


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One file of the images folder that calls itself an image."""

    id: str
    """First 16 hex digits of the sha256 of the content; of the name where the content cannot be read."""
    name: str
    """Path relative to the folder, with forward slashes."""
    root: Path
    """The folder."""
    drop: Drop | None = None
    """Why it will not be used: duplicate, unreadable, unsupported; None for those that go on."""

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.root / self.name


class ImageIndex(Sequence[ImageEntry]):
    """ImageIndex of one folder, packed; one is made when it is asked for. A slice is a list: take small ones."""

    def __init__(self, root: Path, entries: Iterable[ImageEntry] = ()) -> None:
        self.root = root
        self._names, self._ends, self._ids = bytearray(), array("Q"), bytearray()
        self._drops: dict[int, Drop] = {}
        for entry in entries:
            self.append(entry)

    def append(self, entry: ImageEntry) -> None:
        """Add one at the end."""
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

    def __hash__(self) -> int:
        return hash(bytes(self._ids))

    def _entry(self, i: int) -> ImageEntry:
        digest = self._ids[i * ID_BYTES : (i + 1) * ID_BYTES].hex()
        return ImageEntry(digest, self._name(i).decode(), self.root, self._drops.get(i))

    def _name(self, i: int) -> bytes:
        return bytes(self._names[self._ends[i - 1] if i else 0 : self._ends[i]])

    def sorted_by(self, place: Callable[[bytes], bytes] = bytes) -> ImageIndex:
        """The same entries by what `place` makes of their names; nothing is copied where they are in order already."""
        if self._in_order(place):
            return self
        order = sorted(range(len(self)), key=lambda i: place(self._name(i)))
        return ImageIndex(self.root, map(self._entry, order))

    def _in_order(self, place: Callable[[bytes], bytes]) -> bool:
        before = b""
        for i in range(len(self)):
            now = place(self._name(i))
            if now < before:
                return False
            before = now
        return True

    def mark_duplicates(self) -> None:
        """Give every further entry of a content that was there before its `drop`."""
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


class Shards(Sequence[Sequence[ImageEntry]]):
    """Groups of `size` entries one after the other; each is made when it is asked for."""

    def __init__(self, entries: Sequence[ImageEntry], size: int) -> None:
        self._entries, self._size = entries, size

    def __len__(self) -> int:
        return -(-len(self._entries) // self._size)

    @overload
    def __getitem__(self, at: int) -> Sequence[ImageEntry]: ...
    @overload
    def __getitem__(self, at: slice) -> list[Sequence[ImageEntry]]: ...
    def __getitem__(self, at: int | slice) -> Sequence[ImageEntry] | list[Sequence[ImageEntry]]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not 0 <= at < len(self):
            raise IndexError(at)
        return self._entries[at * self._size : (at + 1) * self._size]

    def size_of(self, at: int) -> int:
        """ImageIndex in a shard, without making them."""
        return min(self._size, len(self._entries) - at * self._size)
