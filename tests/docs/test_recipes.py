"""What YAML documents show is valid, and the tables of docs/recipes.md and docs/nursery.md are those of the code."""

from __future__ import annotations

import doctest
import json

import pytest

from mpa_edge.config.library import parse_yaml
from mpa_edge.config.recipe import Recipe
from mpa_edge.config.task import TaskConfig
from mpa_edge.config.validation import keys, mistakes
from mpa_edge.types import Sample
from tests.docs import nursery_table, recipe_table
from tests.docs.markdown import DOCUMENTS, ROOT, blocks, name_of

TEXTS = {name_of(path): path.read_text(encoding="utf-8") for path in DOCUMENTS}
YAML = [(name, block.text) for name, text in TEXTS.items() for block in blocks(text, "yaml", "yml")]
DOCTESTS = [name for name, text in TEXTS.items() if ">>> " in text]


@pytest.mark.parametrize(("name", "text"), YAML, ids=[name for name, _ in YAML])
def test_what_is_shown_is_valid(name: str, text: str, tmp_path) -> None:
    """Recipes, tasks, and a configuration of accelerate, which says so in its first key."""
    shown = parse_yaml(text, name)
    if "compute_environment" in shown:
        from accelerate.commands.config.config_args import load_config_from_file

        (tmp_path / "config.yaml").write_text(text)
        asked = load_config_from_file(str(tmp_path / "config.yaml"))
        assert (asked.num_processes, asked.num_machines) == (shown["num_processes"], shown["num_machines"])
        return
    assert mistakes(shown, TaskConfig if "kinds" in shown else Recipe) == []


def test_there_are_recipes_to_check() -> None:
    assert {"README.md", "docs/recipes.md"} <= {name for name, _ in YAML}


def test_every_key_is_documented() -> None:
    text = TEXTS["docs/recipes.md"]
    assert text == recipe_table.filled(text), "run: python -m tests.docs.recipe_table"
    sections = text.split("<!-- keys:begin -->")[1].split("\n### ")
    shown = {section.split("\n")[0]: section for section in sections}
    for key in keys(Recipe):
        section, _, name = key.rpartition(".")
        assert f"| `{name}` |" in shown[section or "At the top"] or key in shown


def test_the_nursery_is_as_described() -> None:
    text = TEXTS["docs/nursery.md"]
    assert text == nursery_table.filled(text), "run: python -m tests.docs.nursery_table"


def test_the_error_lines_are_real() -> None:
    valid = parse_yaml(blocks(TEXTS["docs/recipes.md"], "yaml")[0].text, "a recipe")
    shown = [line for block in blocks(TEXTS["docs/recipes.md"], "text") for line in block.text.splitlines()]
    wrong = [valid | {"level": {"lr": 1}}, valid | {"level": {"rank": 0}}]
    assert shown == [f"recipe 'my-charts': {line}" for raw in wrong for line in mistakes(raw, Recipe)]


def test_the_questions_line_is_valid() -> None:
    (block,) = blocks(TEXTS["docs/recipes.md"], "json")
    assert Sample.model_validate(json.loads(block.text)).kind == "text"


@pytest.mark.parametrize("name", DOCTESTS)
def test_the_python_examples_are_true(name: str) -> None:
    failed, tried = doctest.testfile(str(ROOT / name), module_relative=False)
    assert tried
    assert not failed


@pytest.mark.parametrize("name", ["README.md", "docs/nursery.md"])
def test_measured_figures_have_their_place(name: str) -> None:
    head, _, rest = TEXTS[name].partition("<!-- results:begin -->")
    assert head
    assert rest.count("<!-- results:end -->") == 1
