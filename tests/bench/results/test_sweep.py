"""Which settings are tried, and which is recommended."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_edge.bench.results.records import BenchReport, SweepPoint
from mpa_edge.bench.results.sweep import (
    axes_of,
    beats,
    budget_for,
    front,
    goals,
    point_of,
    recommend,
    settings,
    slug,
    sweep_of,
)
from mpa_edge.config.library import load_target
from mpa_edge.errors import MpaError
from tests.bench import made_up

CPU = load_target("cpu")


def report(seed: int = 1, slower: float = 1.0, emulated: bool = False) -> BenchReport:
    rng = np.random.default_rng(seed)
    rows, timed = made_up.answers(60, (0.5, 0.7, 0.7), rng), made_up.timings(slower, rng)
    return made_up.report_of(
        rows, timed, run="r", scheme="gguf-q8_0", target="cpu", emulated=emulated, peak=100_000_000
    )


def test_every_combination_once_in_a_fixed_order() -> None:
    made = settings(axes_of("scheme=a:b,threads=1:4"), CPU, cores=8)
    assert made == [
        {"threads": 1, "scheme": "a"},
        {"threads": 1, "scheme": "b"},
        {"threads": 4, "scheme": "a"},
        {"threads": 4, "scheme": "b"},
    ]
    assert len({slug(one) for one in made}) == 4


def test_without_values_the_target_and_the_device_choose() -> None:
    made = settings(axes_of("threads,image_budget,scheme"), CPU, cores=3)
    assert {one["threads"] for one in made} == {1, 2, 3}
    assert {one["image_budget"] for one in made} == {1, CPU.image.max_tiles}
    assert {one["scheme"] for one in made} == {choice.name for choice in CPU.schemes}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no axis ''"),
        ("tiles", "no axis 'tiles'"),
        ("threads=", "threads has no values"),
        ("threads=two", "threads=two is no count"),
        ("threads=0", "threads=0 is no count"),
        ("threads=1,", "no axis ''"),
        ("image_budget=1:999", "image_budget=999 is no count"),
    ],
)
def test_a_wrong_sweep_is_one_line_with_the_fix(text: str, message: str) -> None:
    with pytest.raises(MpaError, match=message):
        settings(axes_of(text), CPU, cores=2)


def test_pixels_go_with_tiles() -> None:
    narrow = budget_for(CPU, 1)
    assert narrow.max_tiles == 1
    assert narrow.max_pixels == round(CPU.image.max_pixels / CPU.image.max_tiles)


def test_a_timing_that_does_not_count_is_null_and_never_within_budgets() -> None:
    valid, emulated = report(), report(emulated=True)
    assert point_of({"threads": 1}, valid).ttft_s == valid.latency["ttft_s"].p50
    point = point_of({"threads": 1}, emulated)
    assert (point.ttft_s, point.tokens_per_s, point.peak_bytes, point.within_budgets) == (None, None, None, False)
    assert point.accuracy == emulated.accuracy.artifact.value


def test_the_recommended_one_is_on_the_front() -> None:
    points = [point_of({"threads": n}, report(seed=n, slower=0.5 + n / 10)) for n in (1, 2, 4)]
    made = sweep_of("cpu", points)
    assert made.recommended is not None
    assert made.points[made.recommended].on_front
    assert sweep_of("cpu", [point_of({"threads": 1}, report(emulated=True))]).recommended is None


# --- the front --------------------------------------------------------------------------------------------------------


def point(
    accuracy: float, ttft_s: float | None, speed: float | None = 10.0, peak: int | None = 100, ok: bool = True
) -> SweepPoint:
    return SweepPoint(
        settings={},
        accuracy=accuracy,
        ci95=(accuracy - 0.02, accuracy + 0.02),
        ttft_s=ttft_s,
        tokens_per_s=speed,
        peak_bytes=peak,
        within_budgets=ok,
        on_front=False,
    )


NUMBERS = st.integers(1, 4)
POINTS = st.lists(
    st.builds(
        point,
        NUMBERS.map(lambda n: n / 10),
        st.none() | NUMBERS.map(float),
        st.none() | NUMBERS.map(float),
        st.none() | NUMBERS,
        st.booleans(),
    ),
    max_size=9,
)


@given(POINTS)
def test_the_front_is_what_nobody_beats(points: list[SweepPoint]) -> None:
    on = front(points)
    values = [goals(each) for each in points]
    for i, value in enumerate(values):
        assert on[i] == (not any(beats(other, value) for other in values))
    assert not points or any(on)
    # whoever is off is beaten by someone who is on
    for i, value in enumerate(values):
        assert on[i] or any(on[j] and beats(values[j], value) for j in range(len(points)))
    assert [each.on_front for each in sweep_of("cpu", points).points] == list(on)


def overlap(a: SweepPoint, b: SweepPoint) -> bool:
    return a.ci95[0] <= b.ci95[1] and b.ci95[0] <= a.ci95[1]


@given(POINTS)
def test_the_recommended_one_is_allowed_and_as_accurate_as_any(points: list[SweepPoint]) -> None:
    index, reason = recommend(points)
    allowed = [each for each in points if each.within_budgets]
    assert reason
    assert (index is None) == (not allowed)
    if index is not None:
        best = max(allowed, key=lambda each: each.accuracy)
        assert points[index].within_budgets
        assert overlap(points[index], best)
        quicker = [each for each in allowed if overlap(each, best) and each.ttft_s is not None]
        ttft_s = points[index].ttft_s
        assert not quicker or (ttft_s is not None and ttft_s == min(each.ttft_s or 0 for each in quicker))


def test_equal_points_are_both_on_the_front() -> None:
    assert front([point(0.6, 1.0), point(0.6, 1.0), point(0.5, 2.0)]) == (True, True, False)


def test_an_unknown_figure_beats_nobody() -> None:
    assert front([point(0.6, None), point(0.6, 1.0)]) == (False, True)
    assert front([point(0.7, None), point(0.6, 1.0)]) == (True, True)


def test_reasons() -> None:
    assert recommend([]) == (None, "nothing was measured")
    assert recommend([point(0.6, 1.0, ok=False)]) == (None, "no setting is within the budgets of the target")
    index, reason = recommend([point(0.60, 9.0), point(0.58, 1.5), point(0.70, 0.1, ok=False)])
    assert index == 1
    assert reason == (
        "the quickest of 2 settings within the budgets that are as good within noise "
        "(58.0%, first token after 1.50 s; the best has 60.0%)"
    )
    assert recommend([point(0.60, 1.0), point(0.58, 1.5)])[1].startswith("the best within the budgets, and the")
    assert recommend([point(0.60, 9.0), point(0.20, 1.0)]) == (
        0,
        "clearly the best within the budgets (60.0%, first token after 9.00 s)",
    )
    assert recommend([point(0.60, None)])[1] == "clearly the best within the budgets (60.0%)"


def test_ties_go_to_the_faster_then_the_smaller() -> None:
    assert recommend([point(0.6, 1.0, 10.0), point(0.6, 1.0, 12.0)])[0] == 1
    assert recommend([point(0.6, 1.0, 10.0, 200), point(0.6, 1.0, 10.0, 100)])[0] == 1
    assert recommend([point(0.6, 1.0), point(0.6, 1.0)])[0] == 0
