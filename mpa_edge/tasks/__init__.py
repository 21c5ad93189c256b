"""Tasks: what the teacher is told to ask about an image, how a question is put to a model, how answers are scored.

Each module with `TASK = Task(...)` is a task; where it also has `BENCHMARK = Benchmark(...)`, the benchmark's published
files can be read. The prompts follow the structure of Model Parity Alignment (arXiv 2509.16633): objective, output
format, guidelines; the words are this project's own.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpa_edge.errors import MpaError, did_you_mean
from mpa_edge.questions.benchmark import Benchmark

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
OUTPUT_FORMAT = (
    "Write exactly two lines and nothing else:\n"
    "Question: <one question, ending with a question mark>\n"
    "Answer: <a single word or short phrase, without a full sentence and without a final full stop>"
)


@dataclass(frozen=True)
class Task:
    """How to write questions of one kind, how to ask them, and how to score the answers."""

    name: str
    """What recipes call it; the name of its file."""
    title: str
    """One-line description."""
    metric: str
    """Name of a metric (mpa_edge/metrics)."""
    annotation_prompts: tuple[str, ...]
    """What the teacher is told; annotation i of an image uses prompt i modulo their number."""
    short_answer_suffix: str = SHORT_ANSWER
    """What follows the question wherever it is asked: in identify, training, evaluation and export."""
    max_answer_words: int = 7
    """A longer pseudo answer is dropped: a short reply would hardly ever match it."""


def annotation_prompt(objective: str, kinds: Sequence[str] = (), focus: int | None = None) -> str:
    """Objective, output format and guidelines as one prompt.

    `kinds` are the kinds of question that it may ask; with `focus`, an index into them, it asks for that one only.

    >>> print(annotation_prompt("Look at the chart.", ["lookup: read a value", "trend: follow a line"], focus=1))
    Look at the chart.
    <BLANKLINE>
    Write exactly two lines and nothing else:
    Question: <one question, ending with a question mark>
    Answer: <a single word or short phrase, without a full sentence and without a final full stop>
    <BLANKLINE>
    The question is of this kind:
    - trend: follow a line
    """
    parts = [objective, OUTPUT_FORMAT]
    if kinds:
        chosen, head = (kinds, "one of these kinds") if focus is None else ([kinds[focus]], "this kind")
        parts.append("\n".join([f"The question is of {head}:", *(f"- {kind}" for kind in chosen)]))
    return "\n\n".join(parts)


def annotation_prompts(objective: str, kinds: Sequence[str]) -> tuple[str, ...]:
    """A prompt that names all kinds, then one for each kind, so that the annotations of an image spread over them."""
    return (annotation_prompt(objective, kinds), *(annotation_prompt(objective, kinds, at) for at in range(len(kinds))))


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
    """Every task by name, sorted.

    >>> list(tasks())
    ['chartqa', 'minicharts', 'okvqa', 'stvqa', 'textvqa']
    """
    return {name: module.TASK for name, module in _modules().items() if hasattr(module, "TASK")}


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


def get_task(name: str) -> Task:
    """The task of that name; MpaError naming the nearest one where there is none.

    >>> get_task("chartqa").metric
    'relaxed-accuracy'
    >>> get_task("chart-qa")
    Traceback (most recent call last):
    ...
    mpa_edge.errors.MpaError: no task 'chart-qa': did you mean 'chartqa'?
    """
    if name not in tasks():
        raise MpaError(f"no task '{name}': " + did_you_mean(name, tasks(), f"use {', '.join(tasks())}"))
    return tasks()[name]


def get_benchmark(name: str) -> Benchmark:
    """How to read the published files of a benchmark; MpaError naming the nearest one where there is none.

    >>> [split.name for split in get_benchmark("textvqa").splits]
    ['val', 'train', 'test']
    """
    if name not in benchmarks():
        known = f"use {', '.join(benchmarks())}"
        raise MpaError(f"no benchmark '{name}': " + did_you_mean(name, benchmarks(), known))
    return benchmarks()[name]
