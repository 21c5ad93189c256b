"""Merge the adapter into the base: one plain checkpoint with processor and licence, verified before it is published."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.images.folder import open_image
from mpa_edge.progress import say
from mpa_edge.runs.files import make_folder, sha256_json, write_json
from mpa_edge.runs.manifest import StageClock, clear, finish, is_done
from mpa_edge.runs.paths import move, remove
from mpa_edge.stages.level.stage import ADAPTER
from mpa_edge.stages.run import Run, begin, memory_counts
from mpa_edge.tasks import answer_prompt
from mpa_edge.types import Drop
from mpa_edge.vlm import interrupts_held, resolve
from mpa_edge.vlm.transformers import checkpoint
from mpa_edge.vlm.transformers.merging import merge

STAGE = "merge"
BUILDING = ".building"
PROBE_IMAGES = 4


def run_merge(run: Run, fresh: bool = False) -> None:
    """Write `merged/`: a checkpoint that AutoProcessor and AutoModelForImageTextToText load as it is."""
    folder, inputs = run.stage_folder(STAGE), merge_inputs(run)
    if not fresh and is_done(folder, inputs):
        say("merge: already done, nothing changed")
        return
    begin(STAGE, folder, inputs, fresh)
    clock = StageClock(folder)
    with interrupts_held():
        checkpoint.set_threads(run.recipe.threads)
    building = folder / BUILDING
    clear(make_folder(building))
    base, adapter = resolve(run.recipe.student), run.stage_folder("level") / ADAPTER
    difference = merge(base, adapter, building, partial(probe_inputs, run))
    write_json(building / "mpa_edge.json", {"base": Path(base).name, "method": "model parity alignment"})
    # config.json last: nothing loads the folder before it is there
    for path in sorted(building.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
        move(path, folder / path.name)
    remove(building)
    clock.tick()
    finish(
        folder,
        STAGE,
        inputs=inputs,
        config=STAGE,
        seed=run.recipe.seed,
        counts=memory_counts(),
        packages=("torch", "transformers", "peft"),
    )
    say(f"merge: {folder}, logits within {difference:.1e} of the adapter's")


def merge_inputs(run: Run) -> dict[str, str]:
    """Everything that the merged checkpoint depends on."""
    return {"level": run.outputs_of("level"), "student": run.student_fingerprint, "config": sha256_json(STAGE)}


def probe_inputs(run: Run, processor: Any) -> Mapping[str, Any]:
    """Model inputs of one question about each of the first readable images of a run."""
    opened = (open_image(e.path, run.recipe.images.max_pixels) for e in run.entries if e.drop is None)
    images = list(islice((image for image in opened if not isinstance(image, Drop)), PROBE_IMAGES))
    if not images:
        raise MpaError(f"no readable image in {run.images_folder}: name another folder, --images DIR")
    prompt = checkpoint.chat_prompt(processor, answer_prompt(run.task, "What is shown?"))
    made = processor(
        text=[prompt] * len(images),
        images=[[image] for image in images],
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    )
    return dict(made)
