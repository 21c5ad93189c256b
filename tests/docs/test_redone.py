"""docs/recipes.md says which stage a changed key redoes: asked of the stages themselves, key by key."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest
from PIL import Image

from mpa_edge.config.library import load_recipe
from mpa_edge.config.recipe import Recipe
from mpa_edge.config.validation import field_at, keys, model_of
from mpa_edge.stages.annotate.stage import annotate_inputs
from mpa_edge.stages.evaluate import evaluate_inputs
from mpa_edge.stages.identify import identify_inputs
from mpa_edge.stages.level.stage import level_inputs
from mpa_edge.stages.run import Run
from tests.docs.markdown import ROOT
from tests.questions.official import textvqa

TEXT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
TABLE = TEXT.split("| Changed | Redone from |")[1].split("\n\n")[0]
ROWS = [re.findall(r"^\| (.*) \| (\w+)", line)[0] for line in TABLE.splitlines()[2:]]
DOCUMENTED = {key: stage for cell, stage in ROWS for key in re.findall(r"`([\w.*]+)`", cell)}
STAGES = {
    "annotate": annotate_inputs,
    "identify": identify_inputs,
    "level": level_inputs,
    "evaluate": evaluate_inputs,
}
SERVED = ("teacher=openai:http://host/v1#m", "teacher_server.price_in=1.0", "teacher_server.price_out=1.0")
OTHER = {
    "task": "chartqa",
    "teacher_server.api_key_env": "MY_API_KEY",
    "teacher": "nursery:student",
    "student": "nursery:teacher",
    "level.quantize": "nf4",
    "name": "x",
    "title": "x",
}
# these change the images themselves, or nothing but what a document may say; the last ones are for recipes without
# questions (tests/stages/test_silver.py)
LEFT_OUT = ("schema_version", "images.path", "images.render", "images.split", "images.group", "evaluate.holdout")
LEFT_OUT += ("evaluate.votes",)
# sections that the recipe does not have, and a file: tests/config/test_task.py, tests/stages/level/test_labelled.py
LEFT_OUT += ("task.", "level.labelled")
SECTIONS = [key for key in keys(Recipe) if model_of(field_at(Recipe, tuple(key.split("."))).annotation)]
KEYS = [key for key in keys(Recipe) if key not in SECTIONS and not key.startswith(LEFT_OUT)]


# these three belong together
BENCHMARK = ("evaluate.benchmark", "evaluate.data", "evaluate.split")


def documented(key: str) -> str:
    return DOCUMENTED.get(key) or DOCUMENTED[f"{key.split('.')[0]}.*"]


def another(key: str, value: object, questions: Path) -> str:
    """A valid value that is not the one that stands there."""
    annotation = field_at(Recipe, tuple(key.split("."))).annotation
    if key in OTHER or key == "evaluate.questions":
        return OTHER.get(key, str(questions))
    if typing.get_origin(annotation) is typing.Literal:
        return next(choice for choice in typing.get_args(annotation) if choice != value)
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, tuple):
        return "[connector]"
    if isinstance(value, float):
        return str(value / 2 if value else 0.25)
    return str((value or 0) + 1)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that makes a run with one changed key; earlier stages count as finished and unchanged."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"id": "1", "image": "images/a.png", "question": "?", "answers": ["a"]}\n')
    benchmark = ["evaluate.benchmark=textvqa", f"evaluate.data={textvqa(tmp_path / 'textvqa')}", "evaluate.split=val"]
    monkeypatch.setattr(Run, "outputs_of", lambda run, stage: "unchanged")

    def make(key: str | None, beside: str = "") -> Run:
        # a DoRA update cannot be scaled, and every key must be free to change
        base = ["level.strength=1.0", *(SERVED if (key or beside).startswith("teacher_server.") else ())]
        recipe = load_recipe("minicharts", base)
        if key in BENCHMARK:
            recipe = load_recipe("minicharts", ["level.strength=1.0", *benchmark])
        elif key:
            value = recipe
            for part in key.split("."):
                value = getattr(value, part)
            recipe = load_recipe("minicharts", [*base, f"{key}={another(key, value, questions)}"])
        return Run(tmp_path / "run", recipe, str(tmp_path / "images"))

    return make


@pytest.mark.parametrize("key", KEYS)
def test_a_changed_key_redoes_what_is_documented(key: str, runs) -> None:
    before, after = runs(None, key), runs(key)
    assert before.recipe != after.recipe
    redone = next((name for name, inputs in STAGES.items() if inputs(before) != inputs(after)), "nothing")
    assert redone == documented(key)


def test_every_row_was_asked() -> None:
    assert {documented(key) for key in KEYS} == {stage for _, stage in ROWS}
    assert len(KEYS) > 40
