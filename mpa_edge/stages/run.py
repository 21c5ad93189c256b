"""A run: the recipe, the images and the folder that all stages share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mpa_edge.assets import load_recipe
from mpa_edge.errors import MpaError
from mpa_edge.images import ImageEntry, scan
from mpa_edge.nursery.render import render
from mpa_edge.recipe import Recipe
from mpa_edge.runs import MANIFEST, peak_rss_bytes, read_json, read_manifest, sha256_json, write_bytes, write_json
from mpa_edge.tasks import Task, get_task
from mpa_edge.vlm import fingerprint

RECIPE_FILE = "recipe.yaml"
RUN_FILE = "run.json"
RENDERED = "images"
FOLDERS = {
    "annotate": "1-annotate",
    "identify": "2-identify",
    "level": "3-level",
    "merge": "merged",
    "evaluate": "evaluate",
}


@dataclass(frozen=True)
class Run:
    """What a stage needs to know."""

    folder: Path
    """runs/NAME."""
    recipe: Recipe
    """Validated."""
    images: str | None = None
    """Folder of images; None: as the recipe says."""
    limit: int | None = None
    """Use the first images only."""

    @cached_property
    def task(self) -> Task:
        """Prompts and metric."""
        return get_task(self.recipe.task)

    @cached_property
    def images_folder(self) -> Path:
        """Folder of the unlabelled images; draws them first where the recipe says so."""
        config = self.recipe.images
        if self.images or config.path:
            return Path(self.images or config.path or "")
        if config.render is None:
            raise MpaError(f"recipe '{self.recipe.name}' names no images: add --images DIR")
        order = config.render
        return render(self.folder / RENDERED, order.n, order.seed, order.style)

    @cached_property
    def entries(self) -> list[ImageEntry]:
        """Every file of the images folder that calls itself an image, sorted by name."""
        return scan(self.images_folder)[: self.limit]

    @cached_property
    def shards(self) -> list[list[ImageEntry]]:
        """Groups of images; a shard is what is written, and what a crash can lose."""
        size = self.recipe.annotate.shard_size
        return [self.entries[i : i + size] for i in range(0, len(self.entries), size)]

    @cached_property
    def teacher_fingerprint(self) -> str:
        """Hash of the teacher's files."""
        return fingerprint(self.recipe.teacher)

    @cached_property
    def student_fingerprint(self) -> str:
        """Hash of the student's files."""
        return fingerprint(self.recipe.student)

    def stage_folder(self, stage: str) -> Path:
        """Where a stage writes."""
        return self.folder / FOLDERS[stage]

    def outputs_of(self, stage: str) -> str:
        """Hash over what an earlier stage made; MpaError where it is not finished."""
        manifest = read_manifest(self.stage_folder(stage))
        if manifest is None:
            raise MpaError(f"{self.folder} has no finished {stage}: run mpa-edge {stage} {self.folder} first")
        return sha256_json(manifest.outputs)

    def finished(self, stage: str) -> bool:
        """Whether a stage has a manifest."""
        return (self.stage_folder(stage) / MANIFEST).is_file()


def open_run(
    source: str | None, *, images: str | None = None, out: str | None = None,
    overrides: Sequence[str] = (), limit: int | None = None,
) -> Run:  # fmt: skip
    """A run from a recipe (name or file) or from an existing run folder; nothing is written."""
    source = source or "minicharts"
    folder = Path(source)
    if (folder / RUN_FILE).is_file():
        stored = _stored(folder)
        recipe = load_recipe(str(folder / RECIPE_FILE), overrides)
        return Run(Path(out or source), recipe, images or stored["images"], limit or stored["limit"])
    if folder.is_dir():
        raise MpaError(f"'{source}' is not a run folder (no {RUN_FILE}): name a recipe, or a folder that align made")
    recipe = load_recipe(source, overrides)
    return Run(Path(out or f"runs/{recipe.name}"), recipe, images, limit)


def _stored(folder: Path) -> dict[str, Any]:
    stored = read_json(folder / RUN_FILE)
    if not isinstance(stored, dict) or not {"images", "limit"} <= stored.keys():
        raise MpaError(f"{folder / RUN_FILE} is damaged: run mpa-edge align with the recipe and --out {folder} again")
    return stored


def remember(run: Run) -> None:
    """Write the recipe as resolved and where the images are, so that later commands need only the folder."""
    from io import StringIO

    from ruamel.yaml import YAML

    text = StringIO()
    YAML(typ="safe", pure=True).dump(run.recipe.model_dump(mode="json"), text)
    write_bytes(run.folder / RECIPE_FILE, text.getvalue().encode())
    images = str(Path(run.images).resolve()) if run.images else None
    write_json(run.folder / RUN_FILE, {"images": images, "limit": run.limit})


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from any values, the same on every machine.

    >>> stable_seed(0, "a") == stable_seed(0, "a") != stable_seed(1, "a")
    True
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def memory_counts() -> dict[str, int]:
    """Peak memory of this process as a manifest count."""
    return {"peak_rss_bytes": peak_rss_bytes()}
