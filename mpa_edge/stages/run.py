"""A run: the recipe, the images and the folder that all stages share."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from mpa_edge.config.library import load_recipe, yaml_of
from mpa_edge.config.recipe import Recipe
from mpa_edge.engines.job import LOCAL, Engine, Facts
from mpa_edge.errors import MpaError
from mpa_edge.evaluation.predict import question_set
from mpa_edge.images.folder import PreviousScan, content_id, first_usable, scan
from mpa_edge.images.index import ImageEntry, ImageIndex, Shards
from mpa_edge.nursery.render import MARK, render
from mpa_edge.planning.counts import with_held_out
from mpa_edge.progress import say
from mpa_edge.questions.published import read_benchmark
from mpa_edge.runs.files import is_utf8, read_json, sha256_json, sha256_list, write_bytes, write_json
from mpa_edge.runs.manifest import (
    FOLDERS,
    INPUTS,
    MANIFEST,
    RECIPE_FILE,
    RENDERED,
    RUN_FILE,
    SCAN_FILE,
    clear,
    prepare,
    read_manifest,
)
from mpa_edge.runs.memory import peak_rss_bytes
from mpa_edge.runs.paths import require_plain
from mpa_edge.runs.write_hooks import tell
from mpa_edge.stages.holdout import RECORD, HeldOut, choose, read_choice
from mpa_edge.tasks import Task, get_benchmark, get_task
from mpa_edge.types import Record
from mpa_edge.vlm import fingerprint


@dataclass(frozen=True)
class Run:
    """The arguments that all stages share."""

    folder: Path
    """runs/NAME."""
    recipe: Recipe
    """Validated."""
    images: str | None = None
    """Folder of images; None: the recipe's."""
    limit: int | None = None
    """Use the first images only."""
    engine: Engine = LOCAL
    """Runs the shards of annotate and identify."""

    @cached_property
    def task(self) -> Task:
        """Prompts and metric."""
        return get_task(self.recipe.task)

    @cached_property
    def images_folder(self) -> Path:
        """Folder of the unlabelled images, drawn first where the recipe says so."""
        config = self.recipe.images
        if self.images or config.path:
            return Path(self.images or config.path or "").expanduser()
        if config.render is None:
            raise MpaError(f"recipe '{self.recipe.name}' names no images: add --images DIR")
        drawn, folder = config.render, self.folder / RENDERED
        mark = {"n": drawn.n, "seed": drawn.seed, "style": drawn.style, "answers_per_image": 0}
        if folder.is_dir() and read_json(folder / MARK) != mark:
            clear(folder)  # images that were drawn with other settings must not stay among the new ones
        return render(folder, drawn.n, drawn.seed, drawn.style)

    @cached_property
    def entries(self) -> Sequence[ImageEntry]:
        """The image files of the images folder, or of its chosen split, sorted by name.

        Those that evaluation asks about have a `drop`. With a limit, no more than that many can be used.
        """
        found = ImageIndex(self.images_folder, self.candidates) if self.recipe.silver else self._found
        if held_out := self.held_out:
            found.mark_held_out(held_out)
        return found if self.limit is None else first_usable(found, self.limit, self.recipe.images.max_pixels)

    @cached_property
    def candidates(self) -> Sequence[ImageEntry]:
        """The entries among which those that are held out are chosen; with a limit, so many that it is left."""
        found, config = self._found, self.recipe.images
        if self.limit is None:
            return found
        return first_usable(found, with_held_out(self.limit, self.recipe), config.max_pixels)

    @property
    def _found(self) -> ImageIndex:
        found = scan(self.images_folder, self.previous_scan)
        split = self.recipe.images.split
        return found if split is None else entries_of_split(self.recipe, self.images_folder, found)

    @cached_property
    def held_out_groups(self) -> dict[str, str]:
        """Id of each image that is held out for the teacher's questions, in the order of the draw -> its group.

        MpaError where nothing can be held out.
        """
        return dict(self._choice.groups)

    @cached_property
    def _choice(self) -> HeldOut:
        """What was chosen once stays, until annotate finds other images."""
        return read_choice(self.folder, self.recipe) or choose(
            self.folder, self.recipe, self.candidates, self._images_sha256
        )

    @cached_property
    def _images_sha256(self) -> str:
        return sha256_list([entry.id, entry.name, entry.drop is None] for entry in self.candidates)

    def hold_out(self) -> None:
        """Choose the images that are held out, once more where the images of the folder are others than before."""
        if self._choice.images != self._images_sha256:
            self.__dict__["_choice"] = choose(self.folder, self.recipe, self.candidates, self._images_sha256)
            for made in ("held_out_groups", "held_out", "entries", "shards"):
                self.__dict__.pop(made, None)

    @cached_property
    def held_out(self) -> frozenset[str]:
        """Ids of the images that evaluation asks about: nothing may be learned from them.

        They are those of the questions of a file or a benchmark, or those that are held out for the teacher's.
        """
        if self.recipe.silver:
            return frozenset(self.held_out_groups)
        if self.recipe.evaluate.generated:
            return frozenset()
        asked = question_set(self.recipe.evaluate, Path())
        ids = (content_id(asked.folder / image) for image in dict.fromkeys(sample.image for sample in asked.samples))
        return frozenset(filter(None, ids))

    @cached_property
    def previous_scan(self) -> PreviousScan:
        """The images that an earlier run found, with their ids."""
        return PreviousScan(self.folder / SCAN_FILE)

    def remember_scan(self) -> None:
        """Write the images and their ids, so that the next attempt need not read every image, and what is held out."""
        if self.recipe.silver:
            write_json(self.folder / RECORD, self._choice)
        self.previous_scan.write(self.entries, self.folder / SCAN_FILE)

    @cached_property
    def shards(self) -> Shards:
        """Groups of images. A shard is written as a whole: it is what a crash can lose."""
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


def entries_of_split(recipe: Recipe, folder: Path, entries: Sequence[ImageEntry]) -> ImageIndex:
    """The images of `images.split` without those that evaluation asks about. Its questions and answers are not used.

    Raises MpaError where the files of the split are not in the folder, or no image is left.
    """
    name, split = recipe.task_name, recipe.images.split
    if not isinstance(recipe.task, str):
        raise MpaError(f"images.split is for the benchmark of a task by name, and {name} is your own: use images.path")
    wanted = image_paths(name, str(folder), split)
    asked = image_paths(recipe.evaluate.benchmark, recipe.evaluate.data, recipe.evaluate.split)
    kept, root = wanted - asked, os.path.abspath(folder)
    found = ImageIndex(folder, (entry for entry in entries if os.path.normpath(f"{root}/{entry.name}") in kept))
    if not len(found):
        raise MpaError(
            f"{folder} has no image of {name} {split} that evaluation does not use: choose another images.split"
        )
    return found


def image_paths(benchmark: str | None, data: str | None, split: str | None) -> set[str]:
    """Absolute paths of the images of a benchmark's split; empty where no benchmark is named."""
    if benchmark is None or data is None:
        return set()
    found = read_benchmark(get_benchmark(benchmark), data, split)
    return {os.path.abspath(found.folder / sample.image) for sample in found.samples}


def not_finished(folder: Path, stage: str) -> MpaError:
    """The error for a stage that needs an earlier one."""
    known = (folder / RUN_FILE).is_file()
    how = (
        f"mpa-edge {stage} {folder}" if known else f"mpa-edge align --out {folder}, or mpa-edge {stage} --out {folder},"
    )
    return MpaError(f"{folder} has no finished {stage}: run {how} first")


class Remembered(Record):
    """run.json: what the recipe does not say."""

    images: str | None
    """Absolute path of the folder of images; None where the recipe draws them."""
    limit: int | None
    """Use the first images only."""


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
        require_plain(folder)
        try:
            stored = Remembered.model_validate(read_json(folder / RUN_FILE))
        except ValidationError as error:
            raise MpaError(
                f"{folder / RUN_FILE} is damaged: rerun mpa-edge align with the recipe and --out {folder}"
            ) from error
        recipe = load_recipe(str(folder / RECIPE_FILE), overrides)
        return Run(Path(out or source), recipe, images or stored.images, limit or stored.limit)
    if folder.is_dir():
        raise MpaError(f"'{source}' is not a run folder (no {RUN_FILE}): name a recipe, or a folder that align made")
    recipe = load_recipe(source, overrides)
    return Run(Path(out or f"runs/{recipe.name}"), recipe, images, limit)


def remember(run: Run) -> None:
    """Write the resolved recipe and the path of the images, so that later commands need only the run folder.

    The run file is written first: it makes the folder a run folder.
    """
    images = run.images or run.recipe.images.path
    write_json(run.folder / RUN_FILE, Remembered(images=_absolute(images), limit=run.limit))
    write_bytes(run.folder / RECIPE_FILE, yaml_of(with_absolute_paths(run.recipe)))


def _absolute(path: str | None) -> str | None:
    return str(Path(path).expanduser().resolve()) if path else None


def _absolute_text(path: str | None) -> str | None:
    """The same for a recipe, which is text: below a folder whose name is not UTF-8, the path stays as it is."""
    found = _absolute(path)
    return found if found is None or is_utf8(found) else path


def with_absolute_paths(used: Recipe) -> Recipe:
    """The same recipe, with paths that hold in any working folder. Names on a hub stay as they are."""
    recipe = used.model_dump(mode="json")
    models = {
        key: _absolute_text(recipe[key]) for key in ("teacher", "student") if Path(recipe[key]).expanduser().is_dir()
    }
    images = recipe["images"] | {"path": _absolute_text(recipe["images"]["path"])}
    asked = recipe["evaluate"]
    data = asked["data"]
    data = _absolute_text(data) if data and Path(data).expanduser().exists() else data
    evaluate = asked | {"questions": _absolute_text(asked["questions"]), "data": data}
    level = recipe["level"] | {"labelled": _absolute_text(recipe["level"]["labelled"])}
    return Recipe.model_validate(recipe | models | {"images": images, "level": level, "evaluate": evaluate})


def begin(stage: str, folder: Path, inputs: Mapping[str, str], fresh: bool = False) -> None:
    """Prepare a stage folder, and say whether earlier work is resumed or redone."""
    before = read_json(folder / INPUTS)
    same = prepare(folder, inputs, fresh)
    tell(folder, settled=True)  # what was deleted must be gone from a remote copy too before new parts are written
    if isinstance(before, dict) and not fresh:
        changed = ", ".join(sorted(key for key in inputs if before.get(key) != inputs[key]))
        say(f"{stage}: resuming" if same else f"{stage}: starting over because of changes in {changed}")


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from any values, the same on every machine.

    >>> stable_seed(0, "a") == stable_seed(0, "a") != stable_seed(1, "a")
    True
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def device_used(wanted: str) -> dict[str, str]:
    """The device on which models ran in this process, `auto` resolved; empty where none ran."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    device = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    return {"device": device, "device_name": name, "torch_threads": str(torch.get_num_threads())}


def cpu_name() -> str:
    """Model name of the processor, or its architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def memory_counts(by: Facts | None = None) -> dict[str, int]:
    """Peak memory as a manifest count: of this process, or of the worker that took the most."""
    return {"peak_rss_bytes": max(peak_rss_bytes(), by.peak_rss_bytes if by else 0)}
