"""Which timings count, which budgets are met, what is said beside them, and the verdict of all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_edge.bench.results.records import MemoryResult
from mpa_edge.bench.results.timing import figure
from mpa_edge.bench.results.validity import (
    budget_lines,
    cautions,
    invalid_reasons,
    overall,
)
from mpa_edge.config.library import load_target
from mpa_edge.config.target import Thermal
from mpa_edge.planning.budgets import Limit

CPU = load_target("cpu")
LIMITS = Thermal(start_below_c=50.0, throttle_at_c=80.0, cool_down_s=0)
FREE = Thermal(start_below_c=None, throttle_at_c=None, cool_down_s=0)
LIMITED = {"memory_bytes": Limit(1e9, "a"), "ttft_s": Limit(2.0, "b"), "tokens_per_s": Limit(20.0, "c")}
MEMORY = MemoryResult(peak_bytes=750_000_000, method="VmHWM")
LATENCY = {"ttft_s": figure([3.0] * 5, "s"), "tokens_per_s": figure([25.0] * 5, "tokens/s")}


def test_each_budget_has_a_line() -> None:
    made = budget_lines(LIMITED, LATENCY, MEMORY, True)
    assert [(each.name, each.limit, each.why, each.measured, each.met, each.by) for each in made] == [
        ("memory_bytes", 1e9, "a", 7.5e8, True, 0.25),
        ("ttft_s", 2.0, "b", 3.0, False, -0.5),
        ("tokens_per_s", 20.0, "c", 25.0, True, 0.25),
    ]
    assert [each.name for each in budget_lines({"ttft_s": LIMITED["ttft_s"]}, LATENCY, MEMORY, True)] == ["ttft_s"]


def test_what_does_not_count_is_not_judged() -> None:
    for made in (
        budget_lines(LIMITED, LATENCY, MEMORY, False),
        budget_lines(LIMITED, {"ttft_s": figure([], "s")}, MemoryResult(peak_bytes=None, method="denied"), True),
    ):
        assert all(each.met is None and each.by is None and each.measured is None for each in made)


@given(st.floats(0.01, 1e9), st.floats(0, 1e9))
def test_met_and_by_agree(limit: float, measured: float) -> None:
    limits = LIMITED | {"ttft_s": Limit(limit, ""), "tokens_per_s": Limit(limit, "")}
    latency = {"ttft_s": figure([measured], "s"), "tokens_per_s": figure([measured], "tokens/s")}
    for made in budget_lines(limits, latency, MEMORY, True)[1:]:
        assert made.by is not None
        assert made.by == pytest.approx(0, abs=1e-4) or made.met == (made.by > 0)


def test_emulated_and_throttled_runs_are_invalid() -> None:
    probe = {"emulated": True, "emulated_why": "qemu-aarch64 runs this shell"}
    assert invalid_reasons(probe, CPU, "tj at 91 C") == (
        "emulated: qemu-aarch64 runs this shell",
        "throttled: tj at 91 C",
    )
    assert invalid_reasons({"emulated": False}, CPU) == invalid_reasons({}, CPU) == ()


def test_cautions_are_said_and_do_not_invalidate() -> None:
    probe = {
        "emulated": False,
        "load_average": [3.0, 1.0, 1.0],
        "affinity": "0-3",
        "virtual": "QEMU",
        "frequencies": [{"governor": "powersave"}],
        "thermal_zones": [{"type": "cpu", "temp_c": 62.0}],
        "power_mode": "battery saver",
    }
    found = cautions(probe, LIMITS, {"ttft_s": 0.12, "tpot_s": 0.0})
    assert len(found) == 6
    for word in (
        "load average 3.00 on 4",
        "powersave",
        "62 C (cpu)",
        "battery saver",
        "virtual machine (QEMU)",
        "+12%",
    ):
        assert sum(word in each for each in found) == 1
    assert invalid_reasons(probe, CPU) == ()
    assert cautions({"emulated": False}, FREE) == ()
    assert cautions({}, FREE) == ("whether it is emulated is not known",)


def test_the_word_of_all() -> None:
    words = {(word, bad): overall(word, bad) for word in ("holds", "lost", "inconclusive") for bad in (False, True)}
    assert words == {
        ("holds", False): "holds",
        ("holds", True): "invalid",
        ("lost", False): "lost",
        ("lost", True): "lost",
        ("inconclusive", False): "inconclusive",
        ("inconclusive", True): "invalid",
    }
