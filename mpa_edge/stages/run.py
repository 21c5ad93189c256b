"""A run: the recipe, the images and the folder that all stages share."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mpa_edge.config.library import load_recipe
from mpa_edge.config.recipe import Recipe
from mpa_edge.engines import LOCAL, Engine, Facts
from mpa_edge.errors import MpaError
from mpa_edge.images.folder import ImageEntry, Known, scan
from mpa_edge.images.index import Shards
from mpa_edge.nursery.render import MARK, render
from mpa_edge.progress import say
from mpa_edge.runs.files import read_json, sha256_json, write_bytes, write_json
from mpa_edge.runs.manifest import (
    FOLDERS,
    INPUTS,
    MANIFEST,
    RECIPE_FILE,
    RENDERED,
    RUN_FILE,
    SEEN,
    clear,
    prepare,
    read_manifest,
)
from mpa_edge.runs.memory import peak_rss_bytes
from mpa_edge.runs.write_hooks import tell
from mpa_edge.stages.level.processes import Processes
from mpa_edge.stages.split import of_split
from mpa_edge.tasks import Task, get_task
from mpa_edge.vlm import fingerprint


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
    processes: Processes | None = None
    """Over how many processes training is spread; None: it happens in this one. What comes of it is the same."""
    engine: Engine = LOCAL
    """Who runs the shards of annotate and identify."""

    @cached_property
    def task(self) -> Task:
        """Prompts and metric."""
        return get_task(self.recipe.task)

    @cached_property
    def images_folder(self) -> Path:
        """Folder of the unlabelled images; draws them first where the recipe says so."""
        config = self.recipe.images
        if self.images or config.path:
            return Path(self.images or config.path or "").expanduser()
        if config.render is None:
            raise MpaError(f"recipe '{self.recipe.name}' names no images: add --images DIR")
        order, folder = config.render, self.folder / RENDERED
        mark = {"n": order.n, "seed": order.seed, "style": order.style, "answers_per_image": 0}
        if folder.is_dir() and read_json(folder / MARK) != mark:
            clear(folder)  # pictures of another order must not stay among the new ones
        return render(folder, order.n, order.seed, order.style)

    @cached_property
    def entries(self) -> Sequence[ImageEntry]:
        """Every file of the images folder, or of its chosen split, that calls itself an image, sorted by name."""
        found = scan(self.images_folder, self.known)
        if self.recipe.images.split is not None:
            found = of_split(self.recipe, self.images_folder, found)
        return found if self.limit is None else found[: self.limit]

    @cached_property
    def known(self) -> Known:
        """What an earlier attempt found in the images folder."""
        return Known(self.folder / SEEN)

    def remember_entries(self) -> None:
        """Write what this attempt found, so that the next one need not read every image."""
        self.known.write(self.entries, self.folder / SEEN)

    @cached_property
    def shards(self) -> Shards:
        """Groups of images; a shard is what is written, and what a crash can lose."""
        return Shards(self.entries, self.recipe.annotate.shard_size)

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
            raise not_finished(self.folder, stage)
        return sha256_json(manifest.outputs)

    def finished(self, stage: str) -> bool:
        """Whether a stage has a manifest."""
        return (self.stage_folder(stage) / MANIFEST).is_file()


def not_finished(folder: Path, stage: str) -> MpaError:
    """The error of a stage that needs an earlier one."""
    known = (folder / RUN_FILE).is_file()
    how = (
        f"mpa-edge {stage} {folder}" if known else f"mpa-edge align --out {folder}, or mpa-edge {stage} --out {folder},"
    )
    return MpaError(f"{folder} has no finished {stage}: run {how} first")


def open_run(
    source: str | None,
    *,
    images: str | None = None,
    out: str | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
) -> Run:
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
    """Write the recipe as resolved and where the images are, so that later commands need only the folder.

    The run file goes first: it is what makes the folder a run folder.
    """
    from io import StringIO

    from ruamel.yaml import YAML

    images = run.images or run.recipe.images.path
    write_json(run.folder / RUN_FILE, {"images": _absolute(images), "limit": run.limit})
    text = StringIO()
    YAML(typ="safe", pure=True).dump(with_absolute_paths(run.recipe).model_dump(mode="json"), text)
    write_bytes(run.folder / RECIPE_FILE, text.getvalue().encode())


def _absolute(path: str | None) -> str | None:
    return str(Path(path).expanduser().resolve()) if path else None


def _data(path: str | None) -> str | None:
    """A benchmark's folder from anywhere; the id of a hub's data set stays as it is."""
    return _absolute(path) if path and Path(path).expanduser().exists() else path


def with_absolute_paths(used: Recipe) -> Recipe:
    """The same recipe, readable from any working folder."""
    recipe = used.model_dump(mode="json")
    models = {key: _absolute(recipe[key]) for key in ("teacher", "student") if Path(recipe[key]).expanduser().is_dir()}
    images = recipe["images"] | {"path": _absolute(recipe["images"]["path"])}
    asked = recipe["evaluate"]
    evaluate = asked | {"questions": _absolute(asked["questions"]), "data": _data(asked["data"])}
    return Recipe.model_validate(recipe | models | {"images": images, "evaluate": evaluate})


def begin(stage: str, folder: Path, inputs: Mapping[str, str], fresh: bool = False) -> None:
    """Make a stage folder ready for work, and say whether earlier work is built upon or thrown away."""
    before = read_json(folder / INPUTS)
    same = prepare(folder, inputs, fresh)
    tell(folder, settled=True)  # what was thrown away must be gone everywhere before new parts take its place
    if isinstance(before, dict) and not fresh:
        changed = ", ".join(sorted(key for key in inputs if before.get(key) != inputs[key]))
        say(f"{stage}: going on where it was" if same else f"{stage}: made again, because of other {changed}")


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from any values, the same on every machine.

    >>> stable_seed(0, "a") == stable_seed(0, "a") != stable_seed(1, "a")
    True
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def device_used(wanted: str) -> dict[str, str]:
    """The device on which models ran in this process, whatever `auto` stood for; empty where none did."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    device = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    return {"device": device, "device_name": name, "torch_threads": str(torch.get_num_threads())}


def cpu_name() -> str:
    """What the processor calls itself; the name of its architecture where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def memory_counts(by: Facts | None = None) -> dict[str, int]:
    """Peak memory as a manifest count: of this process, or of the largest one that did the work."""
    return {"peak_rss_bytes": max(peak_rss_bytes(), by.peak_rss_bytes if by else 0)}
