"""The held-out questions of an evaluation, and a model's greedy answers to some of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mpa_edge.config.recipe import EvaluateConfig, Recipe
from mpa_edge.errors import MpaError
from mpa_edge.images.cache import groups
from mpa_edge.images.folder import open_image
from mpa_edge.nursery.render import ANSWERS, render
from mpa_edge.progress import say
from mpa_edge.questions import QuestionSet, left_out
from mpa_edge.questions.own import read_questions
from mpa_edge.questions.published import read_benchmark
from mpa_edge.runs.files import sha256_json
from mpa_edge.runs.manifest import FOLDERS, SILVER_QUESTIONS, read_manifest
from mpa_edge.runs.paths import inside, names_in
from mpa_edge.tasks import Task, answer_prompt, get_benchmark, get_task, tasks
from mpa_edge.types import VLM, Drop, Reply, Request, Sample


@dataclass(frozen=True)
class EvalSpec:
    """What a model is asked, and how its answers are scored."""

    questions: QuestionSet
    """Images, questions, accepted answers."""
    task: Task
    """Prompt suffix and metric."""
    max_new_tokens: int
    """For one answer."""
    max_pixels: int
    """Larger images are not opened."""
    bootstrap: int = 2000
    """Resamples of the images behind the interval."""
    seed: int = 0
    """Of the bootstrap."""

    @property
    def sha256(self) -> str:
        """Of the questions and of how they are asked."""
        asked = [(s.id, s.image, s.question, s.answers) for s in self.questions.samples]
        name, how = self.task.name, [self.task.short_answer_suffix, self.task.metric]
        task = name if tasks().get(name) == self.task else [name, *how]
        return sha256_json({"asked": asked, "task": task, "limits": self.max_new_tokens})


def with_silver(recipe: Recipe, run: Path | None) -> Recipe:
    """The recipe of a run, with the questions that its teacher wrote where the recipe names none and they are there."""
    folder = run / FOLDERS["silver"] if run else Path()
    if run is None or not recipe.silver or read_manifest(folder) is None:
        return recipe
    evaluate = recipe.evaluate.model_copy(update={"questions": str(folder / SILVER_QUESTIONS)})
    return recipe.model_copy(update={"evaluate": evaluate})


def recipe_spec(recipe: Recipe, drawn: Path) -> EvalSpec:
    """The held-out questions of a recipe, asked and scored as the recipe says; `drawn` as in `question_set`.

    MpaError where there are none: the generator's fit the built-in task only.
    """
    if recipe.evaluate.generated and recipe.task != "minicharts":
        raise MpaError(
            f"recipe '{recipe.name}' names no held-out questions, and its teacher wrote none: run mpa-edge evaluate "
            "RUN first, or name a file with --set evaluate.questions=FILE.jsonl"
        )
    return EvalSpec(
        questions=question_set(recipe.evaluate, drawn),
        task=get_task(recipe.task),
        max_new_tokens=recipe.identify.max_new_tokens,
        max_pixels=recipe.images.max_pixels,
        bootstrap=recipe.evaluate.bootstrap,
        seed=recipe.seed,
    )


def questions_file(path: str) -> Path:
    """The file that `evaluate.questions` names; MpaError where there is none."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise MpaError(f"no file '{path}': give evaluate.questions a .jsonl or .csv file of image, question, answers")
    return file


def question_set(config: EvaluateConfig, drawn: Path) -> QuestionSet:
    """The first `config.n` questions of a benchmark or a file, else new ones that the generator draws below `drawn`."""
    if config.benchmark:
        return _benchmark_questions(config.benchmark, config.data or "", config.split, config.n)
    if config.questions:
        file = questions_file(config.questions)
        status = file.stat()
        return _own_questions(file, config.n, (status.st_size, status.st_mtime_ns, status.st_ino))
    folder = render(drawn, config.n, config.seed, config.style, answers_per_image=1)
    found = read_questions(folder / ANSWERS)
    with names_in(folder / ANSWERS):
        for sample in found.samples:
            inside(folder, sample.image)
    return replace(found, name="generated questions")


@functools.lru_cache(maxsize=1)
def _own_questions(file: Path, n: int, _state: tuple[int, ...]) -> QuestionSet:
    """Cached while the file stays as it is, so that what was left out is reported once."""
    found = read_questions(file, n)
    if found.dropped:
        say(f"{file}: {left_out(found.dropped)}")
    return found


@functools.lru_cache(maxsize=1)
def _benchmark_questions(name: str, data: str, split: str | None, n: int) -> QuestionSet:
    """Cached, because hashing the images of a parquet file takes seconds; what was left out is reported once."""
    found = read_benchmark(get_benchmark(name), data, split, n)
    for line in filter(None, (found.note, left_out(found.dropped))):
        say(f"{found.name}: {line}")
    return replace(found, mean_of_kinds=False)  # a recipe's evaluation gives every question the same weight


def ask(vlm: VLM, spec: EvalSpec, samples: Sequence[Sample]) -> dict[str, Reply | Drop]:
    """Sample id -> the model's greedy answer, or why its image could not be opened.

    An image is opened once for all of its questions; as many are in memory as `images.cache.groups` allows.
    """
    folder, replies = spec.questions.folder, dict[str, Reply | Drop]()
    names = dict.fromkeys(sample.image for sample in samples)
    for group in groups(names, lambda name: open_image(folder / name, spec.max_pixels)):
        images = dict(group)
        shown = []
        for sample in samples:
            image = images.get(sample.image)
            if isinstance(image, Drop):
                replies[sample.id] = image
            elif image is not None:
                prompt = answer_prompt(spec.task, sample.question)
                shown.append((sample.id, Request(image, prompt, spec.max_new_tokens)))
        answered = vlm.answer([request for _, request in shown])
        replies |= {sample_id: reply for (sample_id, _), reply in zip(shown, answered, strict=True)}
    return replies
