"""Asking a model questions with known answers, and the score: shared by everything that measures accuracy."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpa_edge.config.recipe import EvaluateConfig, Recipe
from mpa_edge.errors import MpaError
from mpa_edge.images.cache import groups
from mpa_edge.images.folder import open_image
from mpa_edge.metrics import get_metric
from mpa_edge.metrics.paired import bootstrap_ci95
from mpa_edge.nursery.render import ANSWERS, render
from mpa_edge.progress import progress, say
from mpa_edge.questions import QuestionSet, left_out
from mpa_edge.questions.own import read_samples
from mpa_edge.questions.published import read_benchmark
from mpa_edge.runs.memory import peak_rss_bytes
from mpa_edge.tasks import Task, answer_prompt, get_benchmark, get_task
from mpa_edge.types import VLM, Drop, Prediction, Reply, Request, Sample

CHUNK = 100


def questions_file(path: str) -> Path:
    """The file behind `evaluate.questions`; MpaError where it is not there."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise MpaError(f"no file '{path}': give evaluate.questions a .jsonl or .csv file of image, question, answers")
    return file


def question_set(config: EvaluateConfig, drawn: Path) -> tuple[Path, list[Sample]]:
    """(folder of the images, held-out samples): a benchmark's, a file's, or drawn by the generator into `drawn`."""
    if config.benchmark:
        found = _benchmark_questions(config.benchmark, config.data or "", config.split, config.n)
        return found.folder, list(found.samples)
    if config.questions:
        path = questions_file(config.questions)
        return path.parent, read_samples(path)[: config.n]
    folder = render(drawn, config.n, config.seed, config.style, answers_per_image=1)
    return folder, read_samples(folder / ANSWERS)


@functools.lru_cache(maxsize=1)
def _benchmark_questions(name: str, data: str, split: str | None, n: int) -> QuestionSet:
    """Read once in a process, and said once what was left out: hashing the pictures of a parquet file takes seconds."""
    found = read_benchmark(get_benchmark(name), data, split, n)
    for line in filter(None, (found.note, left_out(found.dropped))):
        say(f"{found.name}: {line}")
    return found


def ask(
    vlm: VLM, task: Task, images: Path, samples: Sequence[Sample], max_new_tokens: int, max_pixels: int
) -> dict[str, Reply | Drop]:
    """Sample id -> a model's greedy answer, or why its picture cannot be shown. Pictures are opened as needed."""
    said: dict[str, Reply | Drop] = {}
    for opened in groups(dict.fromkeys(one.image for one in samples), lambda n: open_image(images / n, max_pixels)):
        held = dict(opened)
        asked = [(one, held[one.image]) for one in samples if one.image in held]
        said |= {one.id: image for one, image in asked if isinstance(image, Drop)}
        shown = [(one, image) for one, image in asked if not isinstance(image, Drop)]
        replies = vlm.answer(
            [Request(image, answer_prompt(task, one.question), max_new_tokens) for one, image in shown]
        )
        said |= {one.id: reply for (one, _), reply in zip(shown, replies, strict=True)}
    return said


def _unanswered(model: str, drop: Drop) -> MpaError:
    """A server's failure must not count as a wrong answer of its model."""
    why = f"{drop.reason} ({drop.detail})" if drop.detail else drop.reason
    return MpaError(f"{model} left a question without an answer, {why}: mend it and run the same command again")


def predict(
    vlm: VLM, task: Task, images: Path, samples: Sequence[Sample], max_new_tokens: int, max_pixels: int
) -> list[Prediction]:
    """A model's greedy answers with their strict scores. An unreadable image is an error: the set must be the same."""
    said = ask(vlm, task, images, samples, max_new_tokens, max_pixels)
    score, made = get_metric(task.metric).score, []
    for sample in samples:
        reply = said[sample.id]
        if isinstance(reply, Drop):
            raise MpaError(f"{images / sample.image}: {reply.reason}; mend the image or remove its questions")
        if reply.finish_reason == "failed" and reply.drop is not None:
            raise _unanswered(vlm.name, reply.drop)
        made.append(
            Prediction(
                sample_id=sample.id,
                image_id=sample.image,
                kind=sample.kind,
                question=sample.question,
                answers=sample.answers,
                model=vlm.name,
                text=reply.text,
                score=score(reply.text, sample.answers),
            )
        )
    return made


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
