"""Rows, tokens and steps of each stage and bytes on disk: everything that does not depend on the machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpa_edge.config.recipe import Recipe
from mpa_edge.evaluation.predict import question_set
from mpa_edge.planning.memory import FLOAT_BYTES, MOMENTS
from mpa_edge.planning.model_specs import BYTES_ON_DISK, ModelSpec
from mpa_edge.planning.records import Assumptions
from mpa_edge.planning.roofline import Tuned

CHECKPOINTS = 3
"""On disk at once: the last two and the best."""
OTHER_BYTES = 5_000_000
"""Tokenizer, settings, reports and logs of a run."""


@dataclass(frozen=True)
class Counts:
    """Rows and steps, some of them expected shares."""

    images: int
    asked: float
    """Annotations requested from the teacher."""
    annotated: float
    """Those that are kept; the teacher answers each of them again for its votes."""
    verified: float
    """Those that the teacher confirms; the student answers each of them."""
    gap: float
    """Those that the student gets wrong."""
    held_out: float
    """Of the gap, for early stopping."""
    train: float
    """Training samples, with replay."""
    steps: float
    """Expected optimiser steps."""
    steps_at_most: float
    """Without early stopping."""
    questions: int
    """Held-out questions for teacher, base and aligned."""


def can_evaluate(recipe: Recipe) -> bool:
    """Whether there are held-out questions: the generator's fit the built-in task only."""
    return not recipe.evaluate.generated or recipe.task == "minicharts"


def n_questions(recipe: Recipe) -> int:
    """Held-out questions: `evaluate.n`, or all of a file that has fewer. MpaError for a file with a fault."""
    file = recipe.evaluate.questions
    known = file and Path(file).expanduser().is_file()
    return len(question_set(recipe.evaluate, Path()).samples) if known else recipe.evaluate.n


def count(recipe: Recipe, images: int, assumed: Assumptions) -> Counts:
    """Rows and steps of all stages."""
    level, asked = recipe.level, float(images * recipe.annotate.samples_per_image)
    annotated = asked * assumed["kept"]
    verified = annotated * assumed["verified"]
    gap = verified * assumed["gap"]
    chosen = {"all": annotated, "verified": verified}.get(level.subset, gap)
    held_out = chosen * level.holdout
    replay = min(level.replay * (chosen - held_out), verified - gap) if level.subset == "gap" else 0.0
    train = chosen - held_out + replay
    steps = at_most = float(level.max_steps or max(1, round(level.epochs * math.ceil(train / level.batch_size))))
    if level.patience and level.holdout:
        # early stopping needs one evaluation more than its patience
        steps = min(at_most, max(assumed["stopped_at"] * at_most, (level.patience + 1) * level.eval_steps))
    questions = n_questions(recipe) if can_evaluate(recipe) else 0
    return Counts(images, asked, annotated, verified, gap, held_out, train, steps, at_most, questions)


def batches(rows: float, groups: float, size: int) -> float:
    """Number of batches when each group (a shard, a chunk) starts a new one.

    >>> batches(5000, 10, 128), batches(10, 1, 64), batches(0, 1, 64)
    (40, 1, 0)
    """
    groups = max(1, math.ceil(groups))
    return groups * math.ceil(rows / groups / size) if rows else 0


def disk_bytes(
    recipe: Recipe, made: Counts, models: Sequence[ModelSpec], drawn: int, what: Tuned, assumed: Assumptions
) -> dict[str, float]:
    """What a run writes, by kind, and the downloads for it. `models`: teacher, student; `drawn`: generated images."""
    downloads = {m.reference: m.shapes.parameters for m in models if not (m.is_local or m.is_server)}
    drawn += made.questions if recipe.evaluate.generated else 0
    # each checkpoint: weights and moments; then the adapter (or all weights) once more
    state_bytes = (CHECKPOINTS * (1 + MOMENTS) + 1) * FLOAT_BYTES
    return {
        "downloads": BYTES_ON_DISK * sum(downloads.values()),
        "images": drawn * assumed["image_bytes"],
        "rows": (made.asked + 3 * made.questions) * assumed["row_bytes"],
        "checkpoints": state_bytes * what.parameters,
        "merged": FLOAT_BYTES * models[1].shapes.parameters,
        "other": OTHER_BYTES,
    }
