"""How much there is to do: rows, tokens and steps of each stage, and bytes on the disk; no device is needed for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mpa_edge.config.recipe import LevelConfig, Recipe
from mpa_edge.planning.image_tokens import Seen
from mpa_edge.planning.memory import Tuned
from mpa_edge.planning.model_specs import KnownModel
from mpa_edge.planning.records import Assumptions
from mpa_edge.tasks import get_task

CHUNK = 200  # questions that evaluate hands to a model at once
BYTES_ON_DISK = 2  # of a parameter as it is published: fp16 or bf16
FLOAT_BYTES = 4
CHECKPOINTS = 3  # the last two and the best
MOMENTS = 2


@dataclass(frozen=True)
class Figure:
    """One number of a plan and how it came about."""

    name: str
    """Dotted: stage and quantity."""
    value: float
    """In its unit."""
    unit: str
    """s, bytes, tokens, rows, USD."""
    formula: str
    """With its numbers."""


@dataclass(frozen=True)
class Counts:
    """Rows and steps."""

    images: int
    """Those that can be used."""
    asked: float
    """Annotations that the teacher is asked for."""
    annotated: float
    """Those that are kept; each is asked again for its votes, and of the student."""
    verified: float
    """Those that the teacher confirms."""
    gap: float
    """Those that the student gets wrong."""
    held_out: float
    """Of the gap, for early stopping."""
    train: float
    """What is trained on, replay among it."""
    steps: float
    """Optimiser steps that are expected."""
    steps_at_most: float
    """Without early stopping."""
    questions: int
    """Held-out questions for teacher, base and aligned."""


@dataclass(frozen=True)
class Prompts:
    """Tokens of text around a picture, and of replies."""

    annotate: float
    """The prompt for an annotation."""
    answer: float
    """The prompt for a short answer."""
    annotation: float
    """The mean annotation."""
    annotation_longest: float
    """The longest of a batch."""
    answer_longest: float
    """The longest answer of a batch."""
    completion: float
    """The mean answer with its end token; what is trained on."""


def has_questions(recipe: Recipe) -> bool:
    """Whether evaluate has something to ask: the generator's questions fit the built-in task only."""
    return not recipe.evaluate.generated or recipe.task == "minicharts"


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
    steps = float(level.max_steps or max(1, round(level.epochs * math.ceil(train / level.batch_size))))
    questions = recipe.evaluate.n if has_questions(recipe) else 0
    expected = expected_steps(steps, level, assumed["stopped_at"])
    return Counts(images, asked, annotated, verified, gap, held_out, train, expected, steps, questions)


def expected_steps(at_most: float, level: LevelConfig, stopped_at: float) -> float:
    """Steps until early stopping, which cannot come before it has looked once more than its patience lasts."""
    if not level.patience or not level.holdout:
        return at_most
    return min(at_most, max(stopped_at * at_most, (level.patience + 1) * level.eval_steps))


def count_figures(recipe: Recipe, made: Counts, assumed: Assumptions) -> Iterator[Figure]:
    """The same with their formulas."""
    level, samples = recipe.level, recipe.annotate.samples_per_image
    yield Figure("asked", made.asked, "rows", f"images {made.images} x annotate.samples_per_image {samples}")
    yield Figure("annotated", made.annotated, "rows", f"asked {made.asked:g} x kept {assumed['kept']:g}")
    yield Figure("verified", made.verified, "rows", f"annotated {made.annotated:g} x verified {assumed['verified']:g}")
    yield Figure("gap", made.gap, "rows", f"verified {made.verified:g} x gap {assumed['gap']:g}")
    yield Figure(
        "train",
        made.train,
        "rows",
        f"level.subset {level.subset} less held-out {made.held_out:g}, and level.replay {level.replay:g} of that",
    )
    yield Figure(
        "steps",
        made.steps,
        "steps",
        f"at most {made.steps_at_most:g} (level.epochs {level.epochs:g} x train / level.batch_size {level.batch_size}, "
        f"or level.max_steps) x stopped_at {assumed['stopped_at']:g} where early stopping has the time",
    )


def prompts(recipe: Recipe, assumed: Assumptions) -> Prompts:
    """Lengths of the texts, from the task's own prompts and the assumed lengths of what models write."""
    task, chars = get_task(recipe.task), assumed["chars_per_token"]
    each = sum(map(len, task.annotation_prompts)) / len(task.annotation_prompts)
    return Prompts(
        annotate=each / chars + assumed["template_tokens"],
        answer=assumed["question_tokens"] + len(task.short_answer_suffix) / chars + assumed["template_tokens"],
        annotation=min(assumed["annotation_tokens"], recipe.annotate.max_new_tokens),
        annotation_longest=min(assumed["annotation_longest"], recipe.annotate.max_new_tokens),
        answer_longest=min(assumed["answer_longest"], recipe.identify.max_new_tokens),
        completion=min(assumed["answer_tokens"], recipe.identify.max_new_tokens),
    )


def prompt_tokens(seen: Seen, text: float) -> float:
    """Length of a prompt: the picture's tokens, those around it, and the text."""
    return seen.tokens + seen.marks + text


def batches(rows: float, groups: float, size: int) -> float:
    """Number of batches where every group (a shard, a chunk) starts with a new one.

    >>> batches(5000, 10, 128), batches(10, 1, 64), batches(0, 1, 64)
    (40, 1, 0)
    """
    groups = max(1, math.ceil(groups))
    return groups * math.ceil(rows / groups / size) if rows else 0


def disk(
    recipe: Recipe, made: Counts, models: tuple[KnownModel, KnownModel], drawn: int, what: Tuned, assumed: Assumptions
) -> list[Figure]:
    """Bytes that a run writes, and what has to be fetched for it."""
    student = models[1]
    fetched = {model.reference: model.shapes.parameters for model in models if not model.here}
    rows = made.asked + 3 * made.questions
    pictures = drawn + (made.questions if recipe.evaluate.generated else 0)
    size, each, parameters = assumed["picture_bytes"], assumed["row_bytes"], student.shapes.parameters
    state = CHECKPOINTS * (1 + MOMENTS) * FLOAT_BYTES + FLOAT_BYTES
    published = f"{BYTES_ON_DISK} bytes x parameters of {', '.join(fetched) or 'nothing: all is here'}"
    kept = f"(3 checkpoints x weights and 2 moments + what was learned) x 4 bytes x {what.parameters} trained"
    return [
        Figure("disk.fetch", BYTES_ON_DISK * sum(fetched.values()), "bytes", published),
        Figure("disk.pictures", pictures * size, "bytes", f"{pictures} drawn x picture_bytes {size:g}"),
        Figure("disk.rows", rows * each, "bytes", f"{rows:g} rows x row_bytes {each:g}"),
        Figure("disk.checkpoints", state * what.parameters, "bytes", kept),
        Figure("disk.merged", FLOAT_BYTES * parameters, "bytes", f"4 bytes x {parameters} of {student.reference}"),
    ]
