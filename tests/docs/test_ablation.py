"""The ablation has a line for each option, and each of its lines is a recipe."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from mpa_edge.config.library import load_recipe
from tests.docs.markdown import ROOT


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("ablation", ROOT / "benchmarks" / "ablation.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["ablation"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "benchmarks"))
    del sys.modules["ablation"]


def test_every_arm_is_a_recipe_of_its_own(ablation) -> None:
    made = [load_recipe("minicharts", arm.changes) for arm in ablation.ARMS]
    assert len({recipe.model_dump_json() for recipe in made}) == len(ablation.ARMS)
    # the first line is the recipe as it stands: all others are compared with it
    assert ablation.ARMS[0].name == ablation.REFERENCE
    assert made[0] == load_recipe("minicharts")


def test_every_option_of_the_lessons_has_an_arm(ablation) -> None:
    options = {"annotate.votes", "annotate.samples_per_image", "level.replay", "level.strength"}
    assert options <= {change.partition("=")[0] for arm in ablation.ARMS for change in arm.changes}


def test_what_was_measured_with_other_keys_is_measured_again(ablation) -> None:
    arm = ablation.ARMS[1]
    known = {"arms": {arm.name: {"set": list(arm.changes), "seeds": {"0": {"aligned": 0.5}}}}}
    assert ablation.seeds_of(known, arm) == {"0": {"aligned": 0.5}}
    known["arms"][arm.name]["set"] = ["level.replay=0.1"]
    assert ablation.seeds_of(known, arm) == {}


def test_differences_are_taken_on_the_same_seeds(ablation) -> None:
    reference = {"seeds": {"0": {"x": 0.5}, "1": {"x": 0.25}}}
    row = {"seeds": {"1": {"x": 0.5}, "2": {"x": 0.9}}}
    assert ablation.points_over(row, reference, "x") == [0.25]
    assert ablation.points_over(row, reference, "y") == []
