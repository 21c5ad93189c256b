"""The layout of a run folder, and the manifest that marks a stage folder as done.

A stage folder is done when its `manifest.json` is there, names the same inputs, and every output still has its hash.
Otherwise what is missing is redone; `prepare` decides which files can be kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mpa_edge.runs.files import make_folder, read_json, sha256_file, sha256_json, sweep, write_json
from mpa_edge.runs.lock import LOCK
from mpa_edge.runs.log import logger, versions
from mpa_edge.runs.paths import inside, names_in, remove
from mpa_edge.runs.write_hooks import tell
from mpa_edge.types import Inside

MANIFEST = "manifest.json"
INPUTS = ".inputs.json"
CLOCK = ".seconds.json"
EXPORTS = "exports"
# the layout of a run folder: other packages know no more about the stages
RECIPE_FILE = "recipe.yaml"
RUN_FILE = "run.json"
RENDERED = "images"
SCAN_FILE = ".images.jsonl"
HASHES_FILE = ".image-hashes"
COMPLETE = "complete"  # in each checkpoint of level, written last
FOLDERS = {
    "annotate": "1-annotate",
    "identify": "2-identify",
    "level": "3-level",
    "merge": "merged",
    "evaluate": "evaluate",
    "silver": "silver",
}
SILVER_QUESTIONS = "questions.jsonl"


def images_of_run(run: Path) -> Path:
    """Folder of a run's images, as its run file says; those that its recipe draws are inside the run."""
    stored = read_json(run / RUN_FILE)
    named = stored.get("images") if isinstance(stored, dict) else None
    return Path(named) if isinstance(named, str) else run / RENDERED


class Manifest(BaseModel):
    """How a stage folder was made. It is written last: a folder without one is not finished."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    """Of this document."""
    stage: str
    """annotate, identify, level, merge, evaluate or silver."""
    inputs: dict[str, str]
    """Everything the result depends on: name -> sha256."""
    outputs: dict[Inside, str]
    """Every file of the folder: path inside it -> sha256."""
    config_sha256: str
    """Hash of the part of the recipe that the stage read."""
    versions: dict[str, str]
    """Python, mpa-edge and the libraries that did the work."""
    seed: int
    """Seed of the stage."""
    seconds: float
    """Wall seconds, all attempts together."""
    counts: dict[str, int]
    """Rows made, dropped, and whatever else the stage counts."""
    used: dict[str, str] = {}
    """Device and number format that were used, with `auto` resolved; empty if no model ran in this process."""


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a stage folder; None where it is missing or damaged. OutsideError where it names other files."""
    try:
        with names_in(folder / MANIFEST):
            return Manifest.model_validate(read_json(folder / MANIFEST))
    except ValidationError:
        return None


def damaged(folder: Path, manifest: Manifest) -> list[str]:
    """Names of outputs that are missing or have changed."""
    files = [(name, inside(folder, name), digest) for name, digest in manifest.outputs.items()]
    return [name for name, path, digest in files if not path.is_file() or sha256_file(path) != digest]


def is_done(folder: Path, inputs: Mapping[str, str]) -> bool:
    """Present manifest, unchanged inputs, unchanged outputs: the stage can be skipped."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.inputs == dict(inputs) and not damaged(folder, manifest)


def prepare(folder: Path, inputs: Mapping[str, str], fresh: bool = False) -> bool:
    """Prepare a stage folder for work; True if its content can be resumed from.

    With other inputs (or `fresh`) the old content is removed, otherwise only damaged files and the manifest.
    """
    make_folder(folder)
    sweep(folder)
    same = not fresh and read_json(folder / INPUTS) == dict(inputs)
    manifest = read_manifest(folder)
    for name in damaged(folder, manifest) if same and manifest else ():
        remove(inside(folder, name))
    remove(folder / MANIFEST)
    if not same:
        clear(folder)
        write_json(folder / INPUTS, dict(inputs))
    return same


def clear(folder: Path) -> None:
    """Remove everything inside a folder; the manifest first, so that no kill leaves it looking done."""
    for name in (MANIFEST, INPUTS):
        remove(folder / name)
    for path in folder.iterdir():
        if path.name != LOCK:
            remove(path)


def output_files(folder: Path) -> list[Path]:
    """Every file in a stage folder except hidden ones and the manifest, sorted."""
    found = ((path, path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    seen = (path for path, inside in found if not any(part.startswith(".") for part in inside.parts))
    return sorted(path for path in seen if path.name != MANIFEST)


def finish(
    folder: Path,
    stage: str,
    *,
    inputs: Mapping[str, str],
    config: Any,
    seed: int,
    counts: Mapping[str, int],
    packages: Sequence[str] = (),
    files: Sequence[Path] | None = None,
    used: Mapping[str, str] | None = None,
) -> Manifest:
    """Hash the outputs (all files of the folder unless `files` are named) and write the manifest: the stage is done."""
    paths = output_files(folder) if files is None else files
    manifest = Manifest(
        stage=stage,
        inputs=dict(inputs),
        outputs={path.relative_to(folder).as_posix(): sha256_file(path) for path in paths},
        config_sha256=sha256_json(config),
        versions=versions(*packages),
        seed=seed,
        seconds=round(seconds_so_far(folder), 3),
        counts=dict(counts),
        used=dict(used or {}),
    )
    write_json(folder / MANIFEST, manifest)
    logger.info("%s: done in %.1f s, counts %s, used %s", stage, manifest.seconds, manifest.counts, manifest.used)
    return manifest


def seconds_so_far(folder: Path) -> float:
    """Wall seconds of all attempts at a stage, as last written by its clock."""
    stored = read_json(folder / CLOCK)
    seconds = stored.get("seconds") if isinstance(stored, dict) else None
    return float(seconds) if isinstance(seconds, int | float) else 0.0


class StageClock:
    """Adds up the wall seconds of a stage over all attempts. Call `tick` after each shard."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last = time.monotonic()

    def tick(self) -> float:
        """Write the sum so far and return it, seconds."""
        now = time.monotonic()
        total, self._last = seconds_so_far(self._folder) + now - self._last, now
        write_json(self._folder / CLOCK, {"seconds": total})
        tell(self._folder)
        return total
