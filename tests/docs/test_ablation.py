"""The ablation has a line for each option, and each of its lines is a recipe or is marked as removed."""

from __future__ import annotations

import json
import sys

import pytest

from mpa_edge.config.library import load_recipe
from tests.docs.markdown import ROOT

PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
MEASURED = json.loads((ROOT / "docs" / "ablation.json").read_text(encoding="utf-8"))["arms"]


@pytest.fixture(scope="module")
def ablation():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import ablation

    return ablation


def test_every_arm_is_a_recipe_of_its_own(ablation) -> None:
    made = [load_recipe("minicharts", changes) for changes in ablation.ARMS.values()]
    assert len({recipe.model_dump_json() for recipe in made}) == len(ablation.ARMS)
    # the first line is the recipe as it stands: all others are compared with it
    assert next(iter(ablation.ARMS)) == ablation.REFERENCE
    assert made[0] == load_recipe("minicharts")


def test_what_made_the_recipe_has_an_arm(ablation) -> None:
    options = {"annotate.votes", "annotate.samples_per_image", "level.replay", "level.strength", "level.subset"}
    assert options <= {change.partition("=")[0] for changes in ablation.ARMS.values() for change in changes}


def test_every_measured_arm_is_on_the_page_and_a_removed_option_is_marked(ablation) -> None:
    today, _, removed = PAGE.partition("### Options that have been removed")
    for name, arm in MEASURED.items():
        row = f"| {name} | {' '.join(f'`{change}`' for change in arm['set'])} |"
        assert row in (today if name in ablation.ARMS else removed.partition("\n## ")[0])
    assert set(ablation.ARMS) <= set(MEASURED)
    assert "Measured at commit 0646151 with options that have since been removed" in removed


def test_what_was_measured_with_other_keys_is_measured_again(ablation) -> None:
    name = "parity subset"
    known = {"arms": {name: {"set": list(ablation.ARMS[name]), "seeds": {"0": {"aligned": 0.5}}}}}
    assert ablation.seeds_of(known, name) == {"0": {"aligned": 0.5}}
    known["arms"][name]["set"] = ["level.replay=0.1"]
    assert ablation.seeds_of(known, name) == ablation.seeds_of({}, name) == {}


def test_differences_are_taken_on_the_same_seeds(ablation) -> None:
    reference = {"seeds": {"0": {"x": 0.5}, "1": {"x": 0.25}}}
    row = {"seeds": {"1": {"x": 0.5}, "2": {"x": 0.9}}}
    assert ablation.over_reference(row, reference, "x") == [0.25]
    assert ablation.over_reference(row, reference, "y") == []
