"""The level stage: fine-tune the student on the gap, with the negative log-likelihood of the answer and its end token.

Method: arXiv 2509.16633, section on the Parity Leveler; the teacher is not involved. Training is TRL's SFTTrainer with
a peft adapter.
"""

from __future__ import annotations

from dataclasses import replace

from mpa_edge.errors import MpaError
from mpa_edge.progress import say
from mpa_edge.runs.files import sha256_json, write_json
from mpa_edge.runs.log import logger
from mpa_edge.runs.manifest import StageClock, finish, is_done
from mpa_edge.runs.parquet import each_row, read_parts, write_rows
from mpa_edge.runs.paths import remove
from mpa_edge.stages.level.ddp import world_size
from mpa_edge.stages.level.interpolate import interpolate
from mpa_edge.stages.level.labelled import KEPT, LabelledRow, labelled_rows, labelled_sha256
from mpa_edge.stages.level.precision import precision_used
from mpa_edge.stages.level.selection import Selection, select
from mpa_edge.stages.run import Run, begin, device_used, memory_counts
from mpa_edge.tasks import answer_prompt
from mpa_edge.types import ParityRecord
from mpa_edge.vlm import interrupts_held, resolve

STAGE = "level"
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
LOSSES = "losses.json"
ASKED_ABOUT = "images that evaluation asks about"


def run_level(run: Run, fresh: bool = False) -> None:
    """Write `3-level/adapter` (with method full the whole tuned model) and `losses.json`."""
    folder, inputs = run.stage_folder(STAGE), level_inputs(run)
    if not fresh and is_done(folder, inputs):
        say("level: already done, nothing changed")
        return
    selection = choose(run)
    begin(STAGE, folder, inputs, fresh)
    if labelled := [row for row in selection.train if isinstance(row, LabelledRow)]:
        write_rows(folder / KEPT, labelled, LabelledRow)
    sizes = (len(selection.train), selection.replayed, len(selection.holdout))
    logger.info("level: %d training samples (%d of them replayed), %d held out", *sizes)
    clock = StageClock(folder)
    with interrupts_held():
        from mpa_edge.stages.level import training

    outcome = training.train(run, selection, folder / CHECKPOINTS, folder / ADAPTER, clock)
    write_json(folder / LOSSES, outcome.losses)
    training.require_better(outcome, run.recipe.level, len(selection.holdout))
    interpolate(folder / ADAPTER, resolve(run.recipe.student), run.recipe.level.strength)
    clock.tick()
    remove(folder / CHECKPOINTS, quietly=True)
    counts = {
        "train": len(selection.train),
        "replayed": selection.replayed,
        "holdout": len(selection.holdout),
        **({"labelled": len(labelled)} if labelled else {}),
        "steps": outcome.steps,
        "best_step": outcome.best_step,
    }
    used = device_used(run.recipe.device)
    used |= precision_used(run.recipe.level, used.get("device", "cpu"))
    finish(
        folder,
        STAGE,
        inputs=inputs,
        config=run.recipe.level,
        seed=run.recipe.seed,
        counts=counts | memory_counts(),
        packages=("torch", "transformers", "peft", "trl", "accelerate"),
        used=used | ({"processes": str(world_size())} if world_size() > 1 else {}),
    )
    say(f"level: {counts['train']} samples, {outcome.steps} steps, best at step {outcome.best_step}")


def level_inputs(run: Run) -> dict[str, str]:
    """Everything that the adapter depends on."""
    config = {
        "level": run.recipe.level.model_dump(exclude={"min_gap", "labelled"}),
        "seed": run.recipe.seed,
        "answer": answer_prompt(run.task, "?"),
    }
    inputs = {
        "identify": run.outputs_of("identify"),
        "student": run.student_fingerprint,
        "config": sha256_json(config),
    }
    if run.held_out:
        rows = each_row(run.stage_folder("identify"), ParityRecord)
        if seen := sorted({row.image_id for row in rows} & run.held_out):
            inputs[ASKED_ABOUT] = sha256_json(seen)
    if labelled := labelled_rows(run):
        inputs["labelled"] = labelled_sha256(labelled)
    return inputs


def trained_images(run: Run) -> set[str]:
    """Ids of the images that the student of a run was trained or chosen on."""
    chosen = choose(run)
    return {row.image_id for row in (*chosen.train, *chosen.holdout)}


def choose(run: Run) -> Selection:
    """The training rows of a run; MpaError where the gap is too small to learn from."""
    found, config = read_parts(run.stage_folder("identify"), ParityRecord), run.recipe.level
    rows = [row for row in found if row.image_id not in run.held_out]
    if len(rows) < len(found):
        say(f"level: left out {len(found) - len(rows)} samples about images that evaluation asks about")
    n_gap = sum(row.verdict == "gap" for row in rows)
    labelled = labelled_rows(run)
    if n_gap + len(labelled) < config.min_gap:
        verified = sum(row.verdict != "unverified" for row in rows)
        raise MpaError(
            f"only {n_gap} gap items of {verified} verified ones (level.min_gap is {config.min_gap}): nothing was "
            f"trained, the annotations are kept in {run.folder}; add images, or raise annotate.samples_per_image"
        )
    selection = select(rows, config, run.recipe.seed, frozenset(row.image_id for row in labelled))
    return replace(selection, train=(*selection.train, *labelled))
