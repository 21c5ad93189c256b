"""Asking a model questions with known answers, and the score: shared by everything that measures accuracy."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mpa_edge.errors import MpaError
from mpa_edge.images import open_image
from mpa_edge.metrics import get_metric
from mpa_edge.metrics.paired import bootstrap_ci95
from mpa_edge.nursery.render import ANSWERS, render
from mpa_edge.pictures import groups
from mpa_edge.progress import progress
from mpa_edge.recipe import EvaluateConfig, Recipe
from mpa_edge.runs import peak_rss_bytes
from mpa_edge.tasks import Task, answer_prompt, get_task
from mpa_edge.types import VLM, Drop, Prediction, Request, Sample

if TYPE_CHECKING:
    from PIL.Image import Image

CHUNK = 100


def questions_file(path: str) -> Path:
    """The file behind `evaluate.questions`; MpaError where it is not there."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise MpaError(f"no file '{path}': give evaluate.questions a .jsonl file of id, image, question, answers")
    return file


def question_set(config: EvaluateConfig, drawn: Path) -> tuple[Path, list[Sample]]:
    """(folder of the images, held-out samples): from the file that is named, or drawn by the generator into `drawn`."""
    if config.questions:
        path = questions_file(config.questions)
        return path.parent, read_samples(path)[: config.n]
    folder = render(drawn, config.n, config.seed, config.style, answers_per_image=1)
    return folder, read_samples(folder / ANSWERS)


def read_samples(path: Path) -> list[Sample]:
    """Rows of a questions file. Raises MpaError that names the line."""
    samples = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if line.strip():
            samples.append(_sample(path, number, line))
    repeated = [sample_id for sample_id, n in Counter(sample.id for sample in samples).items() if n > 1]
    if repeated:
        raise MpaError(f"{path}: id '{repeated[0]}' is there more than once: give each question an id of its own")
    if not samples:
        raise MpaError(f"{path} holds no question: write one JSON object a line with id, image, question, answers")
    return samples


def _sample(path: Path, number: int, line: str) -> Sample:
    try:
        sample = Sample.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "row"
        raise MpaError(f"{path}:{number}: {where}: {first['msg'].lower()}; mend the line") from error
    except ValueError as error:
        raise MpaError(f"{path}:{number}: not JSON ({error}); mend the line") from error
    if not sample.answers:
        raise MpaError(f"{path}:{number}: answers is empty; give at least one accepted answer")
    return sample


def _open(path: Path, max_pixels: int) -> Image:
    image = open_image(path, max_pixels)
    if isinstance(image, Drop):
        raise MpaError(f"{path}: {image.reason}; mend the image or remove its questions")
    return image


def predict(
    vlm: VLM, task: Task, images: Path, samples: Sequence[Sample], max_new_tokens: int, max_pixels: int
) -> list[Prediction]:
    """A model's greedy answers with their strict scores. An unreadable image is an error: the set must be the same."""
    said: dict[str, str] = {}
    for opened in groups(dict.fromkeys(sample.image for sample in samples), lambda n: _open(images / n, max_pixels)):
        held = {name: image for name, image in opened if not isinstance(image, Drop)}
        asked = [sample for sample in samples if sample.image in held]
        replies = vlm.answer(
            [Request(held[one.image], answer_prompt(task, one.question), max_new_tokens) for one in asked]
        )
        said |= {one.id: reply.text for one, reply in zip(asked, replies, strict=True)}
    score = get_metric(task.metric).score
    return [
        Prediction(
            sample_id=sample.id, image_id=sample.image, kind=sample.kind, question=sample.question,
            answers=sample.answers, model=vlm.name, text=said[sample.id], score=score(said[sample.id], sample.answers),
        )
        for sample in samples
    ]  # fmt: skip


def examine(vlm: VLM, recipe: Recipe, drawn: Path) -> dict[str, Any]:
    """One model's accuracy on a recipe's held-out questions, with its interval and for each kind of question."""
    task, config, started = get_task(recipe.task), recipe.evaluate, time.monotonic()
    images, samples = question_set(config, drawn)
    made: list[Prediction] = []
    with progress(f"evaluate {vlm.name}", len(samples)) as advance:
        for start in range(0, len(samples), CHUNK):
            chunk = samples[start : start + CHUNK]
            limit, max_pixels = recipe.identify.max_new_tokens, recipe.images.max_pixels
            made += predict(vlm, task, images, chunk, limit, max_pixels)
            advance(len(chunk))
    scores, clusters = [row.score for row in made], [row.image_id for row in made]
    return {
        "model": vlm.name,
        "n": len(made),
        "metric": task.metric,
        "accuracy": mean(scores),
        "ci95": bootstrap_ci95(scores, clusters, resamples=config.bootstrap, seed=recipe.seed),
        "kinds": by_kind({"accuracy": made}),
        "seconds": round(time.monotonic() - started, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def by_kind(made: dict[str, list[Prediction]]) -> dict[str, dict[str, float]]:
    """For each question kind: how many, and the accuracy of each model."""
    one = next(iter(made.values()))
    kinds = sorted({row.kind for row in one if row.kind is not None})
    return {
        kind: {"n": float(sum(row.kind == kind for row in one))}
        | {name: mean([row.score for row in rows if row.kind == kind]) for name, rows in made.items()}
        for kind in kinds
    }


def mean(values: Sequence[float]) -> float:
    """Of nothing it is 0."""
    return sum(values) / len(values) if values else 0.0
