"""Groups of near-duplicate images: frames of one video, scaled or compressed copies.

Two images are neighbours where their perceptual hashes (256 bits: signs of the low frequencies, `imagehash.phash`)
differ in 40 bits or less; unrelated ones differ in about 128. That is a camera that moves by one or two percent of the
image. A group is all that is linked by neighbours, so that the first and the last frame of a slow video are in one.

Neighbours are looked for among images that have one of 21 bands of 12 bits in common. Two hashes that differ in up to
20 bits always have; of those that differ in 40, nineteen in twenty.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpa_edge.images.folder import open_image
from mpa_edge.images.index import ImageEntry
from mpa_edge.progress import progress
from mpa_edge.runs.files import MB, disk_errors, make_folder
from mpa_edge.runs.paths import open_in_place
from mpa_edge.types import Drop

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 16
WORDS = SIDE * SIDE // 64
NEAR = 40
BANDS, BAND_BITS = 21, 12
ROW_BYTES = 8 * (1 + WORDS)
AT_ONCE = 256
THREADS = 4
PAIRS_AT_ONCE = 1_000_000
Hashes = NDArray[np.uint64]
"""(images, WORDS); all zero where an image cannot be read."""


def perceptual_hash(image: Image) -> Hashes:
    """(WORDS,) of an image: the same for a scaled or compressed copy, but for a few bits."""
    import imagehash

    # averaged to twice the size at which the hash looks: a large image costs a quarter of the time
    smaller = image.convert("L").reduce(max(1, min(image.size) // 128))
    return np.packbits(imagehash.phash(smaller, hash_size=SIDE).hash).view(np.uint64)


def hashes_of(entries: Sequence[ImageEntry], stored: Path, max_pixels: int) -> Hashes:
    """The hashes of images, in order; new ones are added to the file `stored`, so that no image is read twice.

    A row of the file is the content id and the hash: a kill loses the last few.
    """

    def read(entry: ImageEntry) -> Hashes:
        image = open_image(entry.path, max_pixels)
        return np.zeros(WORDS, np.uint64) if isinstance(image, Drop) else perceptual_hash(image)

    ids = np.fromiter((int(entry.id, 16) for entry in entries), np.uint64, len(entries))
    make_folder(stored.parent)
    with disk_errors(stored.parent, MB), open(stored, "r+b", opener=open_in_place) as file:
        file.truncate(os.fstat(file.fileno()).st_size // ROW_BYTES * ROW_BYTES)
        known = np.fromfile(file, np.uint64).reshape(-1, 1 + WORDS)
        missing = np.flatnonzero(~np.isin(ids, known[:, 0])).tolist()
        if missing:
            with (
                progress("compare images", len(entries), len(entries) - len(missing)) as advance,
                warnings.catch_warnings(),  # threads change the filters, each at its own time
                ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool,
            ):
                for start in range(0, len(missing), AT_ONCE):
                    part = missing[start : start + AT_ONCE]
                    made = np.stack(list(pool.map(read, [entries[i] for i in part])))
                    file.write(np.column_stack([ids[part], made]).tobytes())
                    file.flush()
                    advance(len(part))
            file.seek(0)
            known = np.fromfile(file, np.uint64).reshape(-1, 1 + WORDS)
    known = known[np.argsort(known[:, 0], kind="stable")]
    return known[np.searchsorted(known[:, 0], ids), 1:]


def linked(hashes: Hashes) -> NDArray[np.int64]:
    """Group of each image, from 0. An image that cannot be read is its own group.

    >>> linked(np.array([[7, 0, 0, 0], [0, 0, 0, 0], [5, 0, 0, 0], [2**64 - 1] * 4, [0, 0, 0, 0]], np.uint64)).tolist()
    [0, 1, 0, 2, 3]
    """
    each, member = np.unique(hashes, axis=0, return_inverse=True)
    groups = _link(each)[member.reshape(-1)]
    unread = np.flatnonzero(~hashes.any(axis=1))
    groups[unread] = len(each) + np.arange(len(unread))
    _, first, numbered = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbered]


def _link(hashes: Hashes) -> NDArray[np.int64]:
    """The same for hashes that are all different."""
    # neighbouring frequencies are alike in neighbouring images: each band has bits of all of them
    mixed = np.random.default_rng(0).permutation(SIDE * SIDE)
    bits = np.unpackbits(np.ascontiguousarray(hashes).view(np.uint8), axis=1)
    groups = np.arange(len(hashes))
    for chosen in mixed[: BANDS * BAND_BITS].reshape(BANDS, BAND_BITS):
        groups = _link_band(hashes, groups, bits[:, chosen] @ (1 << np.arange(BAND_BITS)))
    return groups


def _link_band(hashes: Hashes, groups: NDArray[np.int64], band: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join the groups of neighbours that have the same band.

    An image is compared with a few others first, then with more: once the frames of a video are one group, it is not
    compared with itself any more.
    """
    steps, left = 1, np.arange(len(groups))
    while len(left):
        order = np.lexsort((groups, band))
        key, of = band[order], groups[order]
        runs = np.flatnonzero(np.r_[True, (key[1:] != key[:-1]) | (of[1:] != of[:-1])])
        ends = np.repeat(np.r_[runs[1:], len(order)], np.diff(np.r_[runs, len(order)]))
        left, found = np.arange(len(order)), list[NDArray[np.int64]]()
        for step in range(steps):
            # each image with the next ones of other groups
            left = left[ends[left] + step < len(order)]
            left = left[key[left] == key[ends[left] + step]]
            one, other = order[left], order[ends[left] + step]
            near = np.bitwise_count(hashes[one] ^ hashes[other]).sum(axis=1) <= NEAR
            found.append(np.stack([one[near], other[near]]))
            if not len(left) or sum(pairs.shape[1] for pairs in found) > PAIRS_AT_ONCE:
                break
        groups = _joined(groups, found)
        steps *= 4
    return groups


def _joined(groups: NDArray[np.int64], found: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Groups, and those joined that have a pair of neighbours."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, (one, other) = len(groups), np.concatenate([np.zeros((2, 0), np.int64), *found], axis=1)
    edges = coo_array((np.ones(len(one), bool), (groups[one], groups[other])), shape=(n, n))
    joined: NDArray[np.int64] = connected_components(edges, directed=False)[1][groups].astype(np.int64)
    return joined
