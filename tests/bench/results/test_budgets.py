"""Budgets met or missed, and by how much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_edge.bench.results.budgets import at_least, at_most, budget_lines, within
from mpa_edge.bench.results.records import MemoryResult
from mpa_edge.bench.results.timing import figure
from mpa_edge.config.target import Budgets

BUDGETS = Budgets(memory_bytes=1_000_000_000, ttft_s=2.0, tokens_per_s=20.0)
MEMORY = MemoryResult(peak_bytes=750_000_000, method="VmHWM")
LATENCY = {"ttft_s": figure([3.0] * 5, "s"), "tokens_per_s": figure([25.0] * 5, "tokens/s")}


def test_each_budget_has_a_line() -> None:
    made = budget_lines(BUDGETS, LATENCY, MEMORY, True)
    assert [(each.name, each.limit, each.measured, each.met, each.by) for each in made] == [
        ("memory_bytes", 1e9, 7.5e8, True, 0.25),
        ("ttft_s", 2.0, 3.0, False, -0.5),
        ("tokens_per_s", 20.0, 25.0, True, 0.25),
    ]
    assert not within(made)
    assert within((made[0], made[2]))


def test_what_does_not_count_is_not_judged() -> None:
    for made in (
        budget_lines(BUDGETS, LATENCY, MEMORY, False),
        budget_lines(BUDGETS, {"ttft_s": figure([], "s")}, MemoryResult(peak_bytes=None, method="denied"), True),
    ):
        assert all(each.met is None and each.by is None and each.measured is None for each in made)
        assert not within(made)


@given(st.floats(0.01, 1e9), st.floats(0, 1e9))
def test_met_and_by_agree(limit: float, measured: float) -> None:
    for made in (at_most("ttft_s", limit, measured), at_least("tokens_per_s", limit, measured)):
        assert made.by is not None
        assert made.by == pytest.approx(0, abs=1e-4) or made.met == (made.by > 0)
