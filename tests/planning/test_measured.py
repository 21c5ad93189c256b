"""The plan against the seconds that the built-in recipe took on a CPU: docs/plan.json, made by benchmarks/plan.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mpa_edge.config.library import load_recipe
from mpa_edge.planning.estimate import make_plan
from mpa_edge.planning.records import Device, device_file
from mpa_edge.planning.roofline import Machine
from tests.docs.markdown import ROOT

MEASURED: dict[str, Any] = json.loads((ROOT / "docs" / "plan.json").read_text(encoding="utf-8"))
STAGES = MEASURED["stages"]
WITHIN = 0.25


def planned_now() -> dict[str, float]:
    """What is planned today for the recipe and the machine that were measured."""
    peaks = {key: MEASURED["machine"][key] for key in ("flops", "memory_bandwidth", "memory_bytes")}
    device = Device(title="as measured", kind="cpu", source="docs/plan.json", **peaks)
    machine = Machine("here", device, device_file().efficiency["cpu"])
    made = make_plan(load_recipe("minicharts", MEASURED["set"]), None, lambda: [machine])
    return {name: stage.seconds for name, stage in made.machines[0].stages.items()}


def test_every_stage_is_within_a_quarter() -> None:
    planned = planned_now()
    assert planned.keys() == STAGES.keys() - {"total"}
    for stage, seconds in planned.items():
        assert abs(seconds / STAGES[stage]["measured_s"] - 1) <= WITHIN, stage


def test_the_whole_run_is_within_a_quarter() -> None:
    assert sum(planned_now().values()) == pytest.approx(STAGES["total"]["measured_s"], rel=WITHIN)


def test_the_figures_are_of_this_plan() -> None:
    """A change of the plan's formulas needs a new run of the benchmark."""
    for stage, seconds in planned_now().items():
        assert STAGES[stage]["planned_s"] == pytest.approx(seconds, rel=0.05), stage


def test_what_was_measured_took_time() -> None:
    assert STAGES["total"]["measured_s"] == pytest.approx(sum(STAGES[n]["measured_s"] for n in STAGES if n != "total"))
    assert STAGES["total"]["measured_s"] > 10


def test_the_document_says_what_was_measured() -> None:
    text = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    for stage, row in STAGES.items():
        assert f"| {stage} | {row['planned_s']:.1f} | {row['measured_s']:.1f} | {row['ratio']:.2f} |" in text, stage


def test_the_memory_is_within_a_quarter() -> None:
    runs = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))["runs"]
    measured = sum(run["peak_rss_bytes"] for run in runs) / len(runs)
    machine = Machine("cpu", device_file().devices["cpu"], device_file().efficiency["cpu"])
    made = make_plan(load_recipe("minicharts"), None, lambda: [machine])
    assert made.machines[0].memory_bytes == pytest.approx(measured, rel=WITHIN)
