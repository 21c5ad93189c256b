"""Which images are held out where no question names them: chosen by content, a group of near-duplicates at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from mpa_edge.config.recipe import ImagesConfig, Recipe
from mpa_edge.errors import MpaError
from mpa_edge.images.index import ImageEntry, ImageIndex
from mpa_edge.planning.counts import images_at_least, n_held_out
from mpa_edge.progress import say
from mpa_edge.runs.files import read_json, sha256_json
from mpa_edge.runs.manifest import HASHES_FILE
from mpa_edge.stages.near_duplicates import hashes_of, linked
from mpa_edge.types import Record

RECORD = "held-out.json"


class HeldOut(Record):
    """RUN/held-out.json: the choice stays while settings and images stay, whatever is added to the folder later."""

    settings: str
    """Hash of what the choice depends on in the recipe."""
    images: str
    """Hash of the images among which was chosen."""
    groups: tuple[tuple[str, str], ...]
    """(content id, group) of each image that is held out, in the order of the draw."""


def settings_of(recipe: Recipe) -> str:
    """Hash of what the choice depends on besides the images."""
    asked = recipe.evaluate
    return sha256_json([asked.holdout, images_at_least(recipe), recipe.seed, recipe.images.group])


def read_choice(run: Path, recipe: Recipe) -> HeldOut | None:
    """The choice that a run made with these settings; None where it made none."""
    try:
        found = HeldOut.model_validate(read_json(run / RECORD))
    except ValidationError:
        return None
    return found if found.settings == settings_of(recipe) else None


def choose(run: Path, recipe: Recipe, entries: Sequence[ImageEntry], images: str) -> HeldOut:
    """Choose among the usable ones of the `entries`, whose hash is `images`; the run folder keeps perceptual hashes.

    MpaError where nothing can be held out.
    """
    root = entries[0].root if len(entries) else Path()
    usable = ImageIndex(root, (entry for entry in entries if entry.drop is None))
    groups = group_images(usable, recipe.images, run / HASHES_FILE)
    chosen = choose_groups(groups, (entry.id for entry in usable), n_held_out(len(usable), recipe), recipe.seed)
    sizes = np.bincount(groups, minlength=1)
    if not len(chosen):
        why = f", {sizes.max()} of them in one group that is never split (images.group)" if sizes.max() > 1 else ""
        raise MpaError(
            f"none of {len(usable)} images can be held out for evaluation{why}: add images, name questions with --set "
            "evaluate.questions=FILE.jsonl, or do without, --set evaluate.holdout=0"
        )
    if len(sizes) < len(usable):
        say(f"held out: {len(chosen)} of {len(usable)} images, in {len(sizes)} groups; the largest has {sizes.max()}")
    ids, first = [usable[i].id for i in chosen.tolist()], dict[int, str]()
    for name, group in zip(ids, groups[chosen].tolist(), strict=True):
        first.setdefault(group, name)  # a group is named after its first image
    pairs = tuple((name, first[group]) for name, group in zip(ids, groups[chosen].tolist(), strict=True))
    return HeldOut(settings=settings_of(recipe), images=images, groups=pairs)


def group_images(entries: Sequence[ImageEntry], config: ImagesConfig, hashes: Path) -> NDArray[np.int64]:
    """Group of each image, from 0, as the recipe says."""
    if config.group == "auto":
        return linked(hashes_of(entries, hashes, config.max_pixels))
    if config.group == "none":
        return np.arange(len(entries))
    return np.unique([entry.name.rpartition("/")[0] for entry in entries], return_inverse=True)[1]


def choose_groups(groups: NDArray[np.int64], ids: Iterable[str], n: int, seed: int) -> NDArray[np.int64]:
    """Positions of about `n` images in whole groups, never more than half of all; the first of each group come first.

    The draw depends on the contents and the seed alone, not on names or order. Where every group is larger than what
    is wanted, the smallest are taken.

    Args:
        groups: Group of each image, from 0.
        ids: Content id of each image.
        n: Images wanted.
        seed: Of the draw.

    >>> ids = [f"{i:016x}" for i in range(8)]
    >>> sorted(choose_groups(np.array([0, 0, 1, 2, 3, 4, 5, 6]), ids, 3, seed=0).tolist())
    [2, 6, 7]
    >>> choose_groups(np.zeros(8, np.int64), ids, 3, seed=0).tolist()
    []
    """
    drawn = (hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in ids)
    ranks = np.frombuffer(b"".join(drawn), dtype=">u8").astype(np.uint64)
    sizes = np.bincount(groups)
    first = np.full(len(sizes), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(first, groups, ranks)
    order, most, total = np.argsort(first, kind="stable"), len(ranks) // 2, 0
    taken = np.zeros(len(sizes), bool)
    for group in order.tolist():
        if total + sizes[group] <= n:
            taken[group], total = True, total + int(sizes[group])
    if total < n / 2:
        for group in sorted(order.tolist(), key=lambda one: int(sizes[one])):
            if total < n and not taken[group] and total + sizes[group] <= most:
                taken[group], total = True, total + int(sizes[group])
    chosen = np.flatnonzero(taken[groups])
    chosen = chosen[np.lexsort((ranks[chosen], groups[chosen]))]
    of = groups[chosen]
    turns = np.arange(len(chosen)) - np.searchsorted(of, of)
    return chosen[np.lexsort((ranks[chosen], turns))]
