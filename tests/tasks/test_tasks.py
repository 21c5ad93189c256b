"""Every task can be asked and scored; prompts are the same bytes everywhere."""

import re

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.metrics import get_metric
from mpa_edge.tasks import SHORT_ANSWER, Task, answer_prompt, get_task, tasks
from mpa_edge.tasks.parse import parse_annotation
from mpa_edge.types import Drop

every = pytest.mark.parametrize("task", list(tasks().values()), ids=list(tasks()))
PAPER = ("chartqa", "okvqa", "stvqa", "textvqa")


def test_the_five_tasks_and_their_metrics() -> None:
    assert {name: task.metric for name, task in tasks().items()} == {
        "textvqa": "vqa-accuracy",
        "okvqa": "vqa-accuracy",
        "stvqa": "anls",
        "chartqa": "relaxed-accuracy",
        "minicharts": "exact-match",
    }


@every
def test_task_is_complete(task: Task) -> None:
    assert get_metric(task.metric).agrees("red", "Red")
    assert len(set(task.annotation_prompts)) == len(task.annotation_prompts) > 0
    assert 1 <= task.max_answer_words <= 7
    assert all(prompt == prompt.strip() != "" for prompt in task.annotation_prompts)


@every
def test_answer_prompt_keeps_the_question_whole(task: Task) -> None:
    prompt = answer_prompt(task, "What is this?")
    assert prompt.startswith("What is this?")
    assert prompt in ("What is this?", "What is this?" + SHORT_ANSWER)
    assert SHORT_ANSWER.startswith("\n")


@pytest.mark.parametrize("name", PAPER)
def test_annotation_prompt_has_objective_format_and_guidelines(name: str) -> None:
    kinds = {"chartqa": 4, "okvqa": 5, "stvqa": 0, "textvqa": 0}[name]
    first, *focused = get_task(name).annotation_prompts
    assert first.startswith("You are shown")
    assert re.search(r"^Question: .*\nAnswer: ", first, re.MULTILINE)
    assert len(re.findall(r"^- ", first, re.MULTILINE)) == kinds == len(focused)
    assert all(len(re.findall(r"^- ", prompt, re.MULTILINE)) == 1 for prompt in focused)


@pytest.mark.parametrize("name", PAPER)
def test_a_teacher_that_repeats_the_prompt_is_dropped(name: str) -> None:
    for prompt in get_task(name).annotation_prompts:
        assert isinstance(parse_annotation(prompt, 99), Drop)


def test_minicharts_speaks_in_few_words() -> None:
    task = get_task("minicharts")
    assert task.annotation_prompts == (
        "Ask about a value.",
        "Ask about a comparison.",
        "Ask about a color.",
        "Ask about a count.",
        "Ask about a text.",
    )
    assert answer_prompt(task, "How many?") == "How many?"


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(MpaError, match=r"did you mean 'textvqa'\?$"):
        get_task("text-vqa")
    with pytest.raises(MpaError, match=r"use chartqa, minicharts, okvqa, stvqa, textvqa, or the path of a task"):
        get_task("zzz")
