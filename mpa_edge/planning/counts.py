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
SILVER_AT_LEAST = 200
"""Questions of the teacher about held-out images, where there are enough images."""
SILVER_KEPT = 0.5
"""Share of them that is expected to be left: a careful guess, which only decides how many images are needed."""


@dataclass(frozen=True)
class Counts:
    """Rows and steps, some of them expected shares."""

    images: int
    """Usable ones that may be learned from."""
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
    """Held-out questions for teacher, base and aligned; for base and aligned where the teacher wrote them."""
    silver_images: int = 0
    """Held-out images about which the teacher writes questions."""
    silver_asked: float = 0.0
    """Questions requested about them."""
    silver_annotated: float = 0.0
    """Those that are kept; the teacher answers each of them `evaluate.votes` times."""


def images_for(questions: int, recipe: Recipe) -> int:
    """Held-out images that are enough for as many questions of the teacher."""
    return math.ceil(questions / (SILVER_KEPT * recipe.annotate.samples_per_image))


def images_at_least(recipe: Recipe) -> int:
    """Images that are held out even where the recipe's share is less."""
    return images_for(min(SILVER_AT_LEAST, recipe.evaluate.n), recipe)


def n_held_out(images: int, recipe: Recipe) -> int:
    """How many of so many images should be held out for the teacher's questions: at most half; 0 without such."""
    share = max(round(recipe.evaluate.holdout * images), images_at_least(recipe))
    return min(share, images // 2) if recipe.silver else 0


def with_held_out(images: int, recipe: Recipe) -> int:
    """So many images that about as many are left when those are taken off that should be held out."""
    if not recipe.silver:
        return images
    return min(2 * images, max(images + images_at_least(recipe), math.ceil(images / (1 - recipe.evaluate.holdout))))


def n_asked_about(held_out: int, recipe: Recipe) -> int:
    """About how many of the images that are held out the teacher writes questions: enough for `evaluate.n`."""
    return min(held_out, images_for(recipe.evaluate.n, recipe))


def can_evaluate(recipe: Recipe) -> bool:
    """Whether there are held-out questions: the generator's fit the built-in task only."""
    return not recipe.evaluate.generated or recipe.task == "minicharts" or recipe.silver


def n_questions(recipe: Recipe) -> int:
    """Held-out questions: `evaluate.n`, or all of a file that has fewer. MpaError for a file with a fault."""
    file = recipe.evaluate.questions
    known = file and Path(file).expanduser().is_file()
    return len(question_set(recipe.evaluate, Path()).samples) if known else recipe.evaluate.n


def count(recipe: Recipe, images: int, assumed: Assumptions) -> Counts:
    """Rows and steps of all stages; `images`: usable ones, with those that will be held out."""
    held_back = n_held_out(images, recipe)
    silver_images = n_asked_about(held_back, recipe)
    images, silver_asked = images - held_back, float(silver_images * recipe.annotate.samples_per_image)
    silver_annotated = silver_asked * assumed["kept"]
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
    if recipe.silver:
        questions = min(questions, round(silver_annotated * assumed["verified"]))
    silver = (silver_images, silver_asked, silver_annotated)
    return Counts(images, asked, annotated, verified, gap, held_out, train, steps, at_most, questions, *silver)


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
    drawn += made.questions if recipe.evaluate.generated and not recipe.silver else 0
    # each checkpoint: weights and moments; then the adapter (or all weights) once more
    state_bytes = (CHECKPOINTS * (1 + MOMENTS) + 1) * FLOAT_BYTES
    return {
        "downloads": BYTES_ON_DISK * sum(downloads.values()),
        "images": drawn * assumed["image_bytes"],
        "rows": (made.asked + made.silver_asked + 3 * made.questions) * assumed["row_bytes"],
        "checkpoints": state_bytes * what.parameters,
        "merged": FLOAT_BYTES * models[1].shapes.parameters,
        "other": OTHER_BYTES,
    }
