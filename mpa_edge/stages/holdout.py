"""Which images are held out where no question names them: chosen by content, a group of near-duplicates at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.images.index import ImageEntry
from mpa_edge.planning.counts import images_at_least, n_held_out
from mpa_edge.runs.files import read_json, sha256_json
from mpa_edge.types import Record

RECORD = "held-out.json"


class HeldOut(Record):
    """RUN/held-out.json: the choice stays while settings and images stay, whatever is added to the folder later."""

    settings: str
    """Hash of what the choice depends on in the recipe."""
    images: str
    """Hash of the images among which was chosen."""
    groups: dict[str, str]
    """Content id of each image that is held out, in the order of the draw -> its group."""


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


def choose(recipe: Recipe, entries: Iterable[ImageEntry], images: str) -> HeldOut:
    """Choose among the usable ones of the `entries`, whose hash is `images`.

    MpaError where nothing can be held out.
    """
    usable = [(entry.id, entry.name) for entry in entries if entry.drop is None]
    ids = [name for name, _ in usable]
    groups = np.arange(len(ids))
    if recipe.images.group == "folder":
        groups = np.unique([name.rpartition("/")[0] for _, name in usable], return_inverse=True)[1]
    chosen = choose_groups(groups, ids, n_held_out(len(ids), recipe), recipe.seed)
    if not len(chosen):
        largest = int(np.bincount(groups).max()) if len(ids) else 0
        why = f", {largest} of them in one group that is never split (images.group)" if largest > 1 else ""
        raise MpaError(
            f"none of {len(ids)} images can be held out for evaluation{why}: add images, name questions with --set "
            "evaluate.questions=FILE.jsonl, or do without, --set evaluate.holdout=0"
        )
    first = {int(groups[i]): ids[i] for i in reversed(chosen.tolist())}  # a group is named after its first image
    by_id = {ids[i]: first[int(groups[i])] for i in chosen.tolist()}
    return HeldOut(settings=settings_of(recipe), images=images, groups=by_id)


def choose_groups(groups: NDArray[np.int64], ids: Sequence[str], n: int, seed: int) -> NDArray[np.int64]:
    """Positions, in the order of the draw, of about `n` images in whole groups, never more than half of all images.

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
    if not len(ids):
        return np.zeros(0, np.int64)
    drawn = [hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in ids]
    ranks = np.frombuffer(b"".join(drawn), dtype=">u8").astype(np.uint64)
    sizes = np.bincount(groups)
    first = np.full(len(sizes), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(first, groups, ranks)
    order, most, total = np.argsort(first, kind="stable"), len(ids) // 2, 0
    taken = np.zeros(len(sizes), bool)
    for group in order.tolist():
        if total + sizes[group] <= n:
            taken[group], total = True, total + int(sizes[group])
    if total < n / 2:
        for group in sorted(order.tolist(), key=lambda one: int(sizes[one])):
            if total < n and not taken[group] and total + sizes[group] <= most:
                taken[group], total = True, total + int(sizes[group])
    chosen = np.flatnonzero(taken[groups])
    return chosen[np.argsort(ranks[chosen], kind="stable")]
