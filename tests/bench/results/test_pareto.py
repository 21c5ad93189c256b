"""The Pareto front and the setting that is recommended."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpa_edge.bench.results.pareto import beats, front, goals, marked, overlap, recommend
from mpa_edge.bench.results.records import SweepPoint


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
    assert [each.on_front for each in marked(points)] == list(on)


@given(POINTS)
def test_the_recommended_one_is_allowed_and_as_accurate_as_any(points: list[SweepPoint]) -> None:
    index, reason = recommend(points)
    allowed = [each for each in points if each.within_budgets]
    assert reason
    assert (index is None) == (not allowed)
    if index is not None:
        best = max(allowed, key=lambda each: each.accuracy)
        assert points[index].within_budgets
        assert overlap(points[index].ci95, best.ci95)
        quicker = [each for each in allowed if overlap(each.ci95, best.ci95) and each.ttft_s is not None]
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
        "the quickest of 2 settings within the budgets that are as accurate within noise "
        "(58.0%, first token after 1.50 s; the best has 60.0%)"
    )
    assert recommend([point(0.60, 1.0), point(0.58, 1.5)])[1].startswith(
        "the most accurate within the budgets, and the"
    )
    assert recommend([point(0.60, 9.0), point(0.20, 1.0)]) == (
        0,
        "clearly the most accurate within the budgets (60.0%, first token after 9.00 s)",
    )
    assert recommend([point(0.60, None)])[1] == "clearly the most accurate within the budgets (60.0%)"


def test_ties_go_to_the_faster_then_the_smaller() -> None:
    assert recommend([point(0.6, 1.0, 10.0), point(0.6, 1.0, 12.0)])[0] == 1
    assert recommend([point(0.6, 1.0, 10.0, 200), point(0.6, 1.0, 10.0, 100)])[0] == 1
    assert recommend([point(0.6, 1.0), point(0.6, 1.0)])[0] == 0
