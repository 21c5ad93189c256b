"""Parity Leveler: tune the student on the gap, with NLL on the answer and its end token.

Method: arXiv 2509.16633, section on the Parity Leveler; the teacher is not involved, unless level.distill asks for its
token probabilities. Training is TRL's SFTTrainer with a peft adapter.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from mpa_edge.errors import MpaError
from mpa_edge.progress import say
from mpa_edge.runs.files import sha256_json, write_json
from mpa_edge.runs.manifest import StageClock, finish, is_done
from mpa_edge.runs.parquet import read_parts
from mpa_edge.stages.annotate.parsing import kind_of
from mpa_edge.stages.level.interpolate import soften
from mpa_edge.stages.level.precision import numbers_used
from mpa_edge.stages.level.selection import Selection, select
from mpa_edge.stages.run import Run, begin, device_used, memory_counts
from mpa_edge.tasks import answer_prompt
from mpa_edge.types import ParityRecord
from mpa_edge.vlm import resolve
from mpa_edge.vlm.transformers.interrupts import interrupts_held

if TYPE_CHECKING:
    from mpa_edge.stages.level import training

STAGE = "level"
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
LOSSES = "losses.json"


def run_level(run: Run, fresh: bool = False) -> None:
    """Write `3-level/adapter` (or the whole tuned model with method full) and `losses.json`."""
    folder, inputs = run.stage_folder(STAGE), level_inputs(run)
    if not fresh and is_done(folder, inputs):
        say("level: done before, nothing changed")
        return
    selection = choose(run)
    begin(STAGE, folder, inputs, fresh)
    clock = StageClock(folder)
    with interrupts_held():
        from mpa_edge.stages.level import training

    outcome = training.train(run, selection, folder / CHECKPOINTS, folder / ADAPTER, clock)
    soften(folder / ADAPTER, resolve(run.recipe.student), run.recipe.level.strength)
    write_json(folder / LOSSES, outcome.losses)
    clock.tick()
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    counts = {
        "train": len(selection.train),
        "replayed": selection.replayed,
        "holdout": len(selection.holdout),
        "steps": outcome.steps,
        "best_step": outcome.best_step,
    }
    finish(
        folder,
        STAGE,
        inputs=inputs,
        config=run.recipe.level,
        seed=run.recipe.seed,
        counts=counts | _memory(outcome),
        packages=("torch", "transformers", "peft", "trl", "accelerate"),
        used=outcome.used or _used(run),
    )
    say(f"level: {counts['train']} samples, {outcome.steps} steps, best at step {outcome.best_step}")


def _used(run: Run) -> dict[str, str]:
    """What trained in this process."""
    used = device_used(run.recipe.device)
    return used | numbers_used(run.recipe.level, used.get("device", "cpu"))


def _memory(outcome: training.Outcome) -> dict[str, int]:
    """Peak of the process that trained: this one, or the first of several."""
    here = memory_counts()
    return {"peak_rss_bytes": max(outcome.peak_rss_bytes, here["peak_rss_bytes"])}


def level_inputs(run: Run) -> dict[str, str]:
    """Everything that the adapter depends on."""
    teacher = {"teacher": run.teacher_fingerprint} if run.recipe.level.distill else {}
    base = {"identify": run.outputs_of("identify"), "student": run.student_fingerprint}
    config = {
        "level": run.recipe.level.model_dump(exclude={"min_gap"}),
        "seed": run.recipe.seed,
        "answer": answer_prompt(run.task, "?"),
    }
    return base | teacher | {"config": sha256_json(config)}


def choose(run: Run) -> Selection:
    """The training rows of a run; MpaError where the gap is too small to learn from."""
    rows, config = read_parts(run.stage_folder("identify"), ParityRecord), run.recipe.level
    n_gap = sum(row.verdict == "gap" for row in rows)
    if n_gap < config.min_gap:
        verified = sum(row.verdict != "unverified" for row in rows)
        raise MpaError(
            f"only {n_gap} gap items of {verified} verified ones (level.min_gap is {config.min_gap}): nothing was "
            f"trained, the annotations are kept in {run.folder}; add images, or raise annotate.samples_per_image"
        )
    kinds = len(run.task.annotation_prompts)
    selection = select(rows, config, run.recipe.seed, lambda row: kind_of(row.id, kinds))
    if selection.left_out:
        say(f"level: {selection.left_out} samples left out, too many of their kind, answer or question")
    return selection
