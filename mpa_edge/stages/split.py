"""The unlabelled pictures of a published benchmark: those of one split, and none that evaluation asks about."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.images.folder import Entries, ImageEntry
from mpa_edge.questions.published import read_benchmark
from mpa_edge.tasks import get_benchmark


def of_split(recipe: Recipe, folder: Path, entries: Sequence[ImageEntry]) -> Entries:
    """The entries of `images.split`, of which only the pictures are taken, never the questions and answers.

    MpaError where the split's files are not in the folder, or nothing is left.
    """
    name, split = recipe.task, recipe.images.split
    wanted = pictures_of(name, str(folder), split)
    asked = pictures_of(recipe.evaluate.benchmark, recipe.evaluate.data, recipe.evaluate.split)
    taken, root = wanted - asked, os.path.abspath(folder)
    kept = Entries(folder, (entry for entry in entries if os.path.normpath(f"{root}/{entry.name}") in taken))
    if not len(kept):
        raise MpaError(
            f"{folder} holds no picture of {name} {split} that evaluation leaves: choose another images.split"
        )
    return kept


def pictures_of(benchmark: str | None, data: str | None, split: str | None) -> set[str]:
    """Absolute paths of the pictures that a split asks about; empty where no benchmark is named."""
    if benchmark is None or data is None:
        return set()
    found = read_benchmark(get_benchmark(benchmark), data, split)
    return {os.path.abspath(found.folder / sample.image) for sample in found.samples}
