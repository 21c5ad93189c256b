"""Tasks: what the teacher asks about an image, how a question is put, what counts as right. One file a benchmark.

The folder is the registry: a module with `TASK = Task(...)` is a task; with `BENCHMARK = Benchmark(...)` beside it, the
benchmark's published files can be read. The prompts follow the structure of Model Parity
Alignment (arXiv 2509.16633): objective, output format, guidelines; the words are this project's own.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mpa_edge.errors import MpaError
from mpa_edge.questions.benchmark import Benchmark

__all__ = [
    "Task",
    "annotation_prompt",
    "answer_prompt",
    "benchmark_names",
    "get_benchmark",
    "get_task",
    "read_row",
    "task_names",
]

Found = TypeVar("Found")
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
OUTPUT_FORMAT = (
    "Write exactly two lines and nothing else:\n"
    "Question: <one question, ending with a question mark>\n"
    "Answer: <a single word or short phrase, without a full sentence and without a final full stop>"
)


@dataclass(frozen=True)
class Task:
    """A benchmark: how to write questions for it, how to ask them, how to score the answers."""

    name: str
    """What recipes call it; the name of its file."""
    title: str
    """One line for people."""
    metric: str
    """Name of a metric (mpa_edge/metrics)."""
    annotation_prompts: tuple[str, ...]
    """What the teacher is told; sample i of an image uses prompt i modulo their number."""
    short_answer_suffix: str = SHORT_ANSWER
    """What follows the question, wherever it is asked: identify, training, evaluation, export."""
    max_answer_words: int = 7
    """A longer pseudo answer is dropped: a short reply would hardly ever match it."""
    question_key: str = "question"
    """Where a row of the published annotations has its question."""
    answers_key: str = "answers"
    """Where it has its answer or answers."""


def annotation_prompt(objective: str, kinds: Sequence[str] = (), focus: int | None = None) -> str:
    """Objective, output format and guidelines as one prompt; with `focus` it asks for that kind of question only.

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
    """The prompt with all kinds first, then one for each kind, so that more samples of an image spread over them."""
    return (annotation_prompt(objective, kinds), *(annotation_prompt(objective, kinds, at) for at in range(len(kinds))))


def answer_prompt(task: Task, question: str) -> str:
    r"""The prompt with which a question is asked: the same bytes in identify, training, evaluation and export.

    >>> answer_prompt(get_task("textvqa"), "What does the sign say?")
    'What does the sign say?\nAnswer the question using a single word or phrase.'
    >>> answer_prompt(get_task("minicharts"), "What color is the bar?")
    'What color is the bar?'
    """
    return question + task.short_answer_suffix


def _tasks() -> dict[str, Task]:
    return {task.name: task for task in _objects("TASK", Task)}


def _benchmarks() -> dict[str, Benchmark]:
    return {benchmark.name: benchmark for benchmark in _objects("BENCHMARK", Benchmark)}


def _objects(name: str, kind: type[Found]) -> Iterator[Found]:
    """The object of that name of every module of this folder that has one, sorted."""
    for stem in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        item = getattr(importlib.import_module(f"{__name__}.{stem}"), name, None)
        if isinstance(item, kind):
            yield item


def benchmark_names() -> list[str]:
    """Names of the benchmarks whose published files can be read.

    >>> benchmark_names()
    ['chartqa', 'okvqa', 'stvqa', 'textvqa']
    """
    return list(_benchmarks())


def get_benchmark(name: str) -> Benchmark:
    """How to read a benchmark; MpaError naming the nearest one where there is none.

    >>> [split.name for split in get_benchmark("textvqa").splits]
    ['val', 'train', 'test']
    """
    benchmarks = _benchmarks()
    if name in benchmarks:
        return benchmarks[name]
    near = difflib.get_close_matches(name, benchmarks, 1)
    tip = f"did you mean '{near[0]}'?" if near else f"use {', '.join(benchmarks)}"
    raise MpaError(f"no benchmark '{name}': {tip}")


def task_names() -> list[str]:
    """Names of all tasks.

    >>> task_names()
    ['chartqa', 'minicharts', 'okvqa', 'stvqa', 'textvqa']
    """
    return list(_tasks())


def get_task(name: str) -> Task:
    """The task of that name; MpaError naming the nearest one where there is none.

    >>> get_task("chartqa").metric
    'relaxed-accuracy'
    >>> get_task("chart-qa")
    Traceback (most recent call last):
    ...
    mpa_edge.errors.MpaError: no task 'chart-qa': did you mean 'chartqa'?
    """
    tasks = _tasks()
    if name in tasks:
        return tasks[name]
    near = difflib.get_close_matches(name, tasks, 1)
    raise MpaError(f"no task '{name}': " + (f"did you mean '{near[0]}'?" if near else f"use {', '.join(tasks)}"))


def read_row(task: Task, row: Mapping[str, object]) -> tuple[str, tuple[str, ...]]:
    """Question and answers of one row of the published annotations. MpaError naming the key that is not as expected.

    Answers may be one string, a list of strings, or a list of {"answer": string}.

    >>> read_row(get_task("chartqa"), {"imgname": "1.png", "query": "How many bars?", "label": "3"})
    ('How many bars?', ('3',))
    """
    question, answers = row.get(task.question_key), row.get(task.answers_key)
    listed = answers if isinstance(answers, list | tuple) else [answers]
    plain = tuple(item.get("answer") if isinstance(item, Mapping) else item for item in listed)
    texts = tuple(item for item in plain if isinstance(item, str))
    if not isinstance(question, str):
        raise MpaError(f"a row of {task.name} has no text under '{task.question_key}': name the question so")
    if not texts or len(texts) != len(plain):
        raise MpaError(f"a row of {task.name} has no answers as text under '{task.answers_key}': name them so")
    return question, texts
