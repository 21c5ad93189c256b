"""The recipes of the paper's table are what their table says, and what plan says of them stands in their headers."""

from __future__ import annotations

import pytest

from mpa_edge.config import library
from mpa_edge.families import family_of
from mpa_edge.planning.records import known_models
from mpa_edge.tasks import benchmarks, get_benchmark, get_task
from tests.docs import recipe_files
from tests.docs.markdown import ROOT


@pytest.mark.parametrize("name", recipe_files.names())
def test_a_recipe_is_its_row_of_the_table(name: str) -> None:
    text = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text == recipe_files.document(name), "run: python -m tests.docs.recipe_files"


def test_five_students_by_four_benchmarks() -> None:
    assert len(recipe_files.STUDENTS) == 5
    assert sorted(recipe_files.BENCHES) == list(benchmarks())
    assert set(recipe_files.names()) < set(library.names("recipes"))


@pytest.mark.parametrize("name", recipe_files.names())
def test_a_recipe_trains_on_one_split_and_is_asked_about_another(name: str) -> None:
    recipe = library.load_recipe(name)
    assert get_task(recipe.task).metric == get_task(recipe.evaluate.benchmark or "").metric
    splits = get_benchmark(recipe.task).splits
    assert recipe.images.split in [split.name for split in splits]
    assert recipe.images.split not in [split.name for split in splits[: get_benchmark(recipe.task).defaults]]
    assert recipe.images.path == recipe.evaluate.data
    assert recipe.level.replay == 0


@pytest.mark.parametrize("model", sorted({s.model for s in recipe_files.STUDENTS.values()}))
def test_a_student_belongs_to_a_family(model: str) -> None:
    family_of(known_models()[model].config["model_type"])


def test_a_warning_stands_where_pictures_are_for_research_only() -> None:
    warned = [name for name in recipe_files.names() if "WARNING, research only" in recipe_files.document(name)]
    assert warned == [name for name in recipe_files.names() if name.endswith("-stvqa")]
