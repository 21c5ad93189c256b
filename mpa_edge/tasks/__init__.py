"""Tasks: what the teacher is told to ask about an image, how a question is put to a model, how answers are scored.

A task is a document (`config/task.py`): those that come with mpa-edge are the YAML files here, your own is a file of
yours. A module with `BENCHMARK = Benchmark(...)` reads the published files of the benchmark after which it is called.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpa_edge.config import library
from mpa_edge.errors import MpaError, did_you_mean
from mpa_edge.metrics import Form, get_metric
from mpa_edge.questions.benchmark import Benchmark

if TYPE_CHECKING:
    from mpa_edge.config.task import TaskConfig

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True)
class Task:
    """How to write questions, how to ask them, and how to score the answers."""

    name: str
    """What recipes call it."""
    metric: str
    """Name of a metric, with its parameters (mpa_edge/metrics)."""
    annotation_prompts: tuple[str, ...] = ()
    """What the teacher is told; annotation i of an image uses prompt i modulo their number."""
    prompt_kinds: tuple[str | None, ...] = ()
    """The kind of question that each of these prompts asks for; None: any."""
    short_answer_suffix: str = SHORT_ANSWER
    """What follows the question wherever it is asked: in identify, training, evaluation and export."""
    max_answer_words: int = 7
    """A longer pseudo answer is dropped: a short reply would hardly ever match it. Only of text."""
    form: str | None = None
    """The metric whose form an answer must have; None: any text."""
    examples: tuple[tuple[str, str], ...] = ()
    """Questions with answers that the annotation prompts show."""

    @property
    def answer_form(self) -> Form | None:
        """What an answer must be; None: any text."""
        return get_metric(self.form).form if self.form else None


def answer_prompt(task: Task, question: str) -> str:
    r"""The prompt with which a question is asked: the same bytes in identify, training, evaluation and export.

    >>> answer_prompt(get_task("textvqa"), "What does the sign say?")
    'What does the sign say?\nAnswer the question using a single word or phrase.'
    >>> answer_prompt(get_task("minicharts"), "What color is the bar?")
    'What color is the bar?'
    """
    return question + task.short_answer_suffix


@functools.cache
def tasks() -> dict[str, Task]:
    """Every task that comes with mpa-edge by name, sorted.

    >>> list(tasks())
    ['chartqa', 'minicharts', 'okvqa', 'stvqa', 'textvqa']
    """
    return {name: _task_of(library.load("tasks", name)) for name in library.names("tasks")}


@functools.cache
def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark whose published files can be read, by name, sorted.

    >>> list(benchmarks())
    ['chartqa', 'okvqa', 'stvqa', 'textvqa']
    """
    return {name: module.BENCHMARK for name, module in _modules().items() if hasattr(module, "BENCHMARK")}


def _modules() -> dict[str, Any]:
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def get_task(task: str | TaskConfig) -> Task:
    """The task of a name or of a document; MpaError naming the nearest one where there is none of that name.

    >>> get_task("chartqa").metric
    'relaxed-accuracy'
    >>> get_task("chart-qa")
    Traceback (most recent call last):
    ...
    mpa_edge.errors.MpaError: no task 'chart-qa': did you mean 'chartqa'?
    """
    if not isinstance(task, str):
        return _task_of(task)
    if task not in tasks():
        known = f"use {', '.join(tasks())}, or the path of a task's YAML file"
        raise MpaError(f"no task '{task}': " + did_you_mean(task, tasks(), known))
    return tasks()[task]


def _task_of(document: TaskConfig) -> Task:
    from mpa_edge.config.task import MAX_WORDS

    form = document.answer.form
    return Task(
        name=document.name,
        metric=document.metric or form or "exact-match",
        annotation_prompts=document.annotation_prompts,
        prompt_kinds=document.prompt_kinds,
        short_answer_suffix=document.short_answer_suffix,
        max_answer_words=document.answer.max_words or MAX_WORDS,
        form=form,
        examples=tuple((one.question, one.answer) for one in document.examples),
    )


def get_benchmark(name: str) -> Benchmark:
    """How to read the published files of a benchmark; MpaError naming the nearest one where there is none.

    >>> [split.name for split in get_benchmark("textvqa").splits]
    ['val', 'train', 'test']
    """
    if name not in benchmarks():
        known = f"use {', '.join(benchmarks())}"
        raise MpaError(f"no benchmark '{name}': " + did_you_mean(name, benchmarks(), known))
    return benchmarks()[name]
