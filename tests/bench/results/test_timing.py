"""Figures, their intervals, the order of questions, drift."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_edge.bench.device.protocol import Line, blocks
from mpa_edge.bench.results.records import METRICS, Timed
from mpa_edge.bench.results.timing import (
    drift,
    figure,
    figures,
    in_rounds,
    loads,
    medians,
    order,
    over_question_medians,
    timed,
)
from mpa_edge.errors import MpaError

SECONDS = st.floats(1e-4, 1e3, allow_nan=False)


@settings(deadline=None, max_examples=50)
@given(st.lists(SECONDS, min_size=2, max_size=60))
def test_a_figure_is_in_order_and_within_its_samples(samples: list[float]) -> None:
    made = figure(samples, "s")
    assert made.n == len(samples)
    assert made.ci95 is not None
    low, high = made.ci95
    assert min(samples) <= low <= high <= max(samples)
    assert min(samples) <= made.p50 <= made.p90 <= made.p99 <= max(samples)
    assert figure(samples, "s") == made


def test_one_sample_has_no_interval() -> None:
    made = figure([2.0], "s")
    assert (made.p50, made.p99, made.ci95) == (2.0, 2.0, None)


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        made = figure(list(rng.lognormal(0.0, 0.3, 40)), "s")
        assert made.ci95 is not None
        hits += made.ci95[0] <= 1.0 <= made.ci95[1]
    assert 0.90 <= hits / 300 <= 0.99


def test_many_samples_fit_in_memory() -> None:
    assert figure([1.0] * 4_001, "s").ci95 == (1.0, 1.0)
    assert len(medians([1.0, 2.0] * 2_000)) == len(medians([1.0, 2.0])) == 2_000


def answer(**values: object) -> Line:
    return Line("answer", "artifact", 0, {"id": "q", "repetition": 1, "text": "x", **values})


def test_what_is_not_said_is_left_out() -> None:
    row = timed(answer(ttft_s=0.5, prefill_s=None, total_s=float("nan"), tokens=3, colour="red"))
    assert row.values == {"ttft_s": 0.5, "tokens": 3.0}


def test_every_metric_has_a_figure() -> None:
    made = figures([timed(answer(ttft_s=0.5))])
    assert set(made) == set(METRICS)
    assert made["ttft_s"].p50 == 0.5
    assert {name for name, each in made.items() if each.n == 0} == set(METRICS) - {"ttft_s"}
    assert all(made[name].unit == unit for name, unit in METRICS.items())


def test_only_a_cold_load_counts() -> None:
    lines = [Line("loaded", "artifact", i, {"load_s": s, "cold": i == 0}) for i, s in enumerate([3.0, 0.4, 0.4])]
    assert loads(lines, "artifact") == [3.0]
    assert loads([Line("loaded", "base", 1, {"load_s": 2.0})], "base") == [2.0]
    assert loads(lines, "base") == []
    assert figures([], loads(lines, "artifact"))["load_s"].p50 == 3.0


IDS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=12, unique=True)


@given(IDS, st.integers(5, 12), st.sampled_from([("artifact",), ("artifact", "base")]), st.integers(0, 99), st.data())
def test_order(ids: list[str], rounds: int, variants: tuple[str, ...], seed: int, data: st.DataObject) -> None:
    asked = ids[: data.draw(st.integers(0, len(ids)))]
    steps = order(ids, repetitions=rounds, timed_ids=asked, variants=variants, seed=seed)
    assert len({step.key for step in steps}) == len(steps)
    assert [step.id for step in steps if step.repetition == 0] == ids
    assert {step.variant for step in steps if step.repetition == 0} == {"artifact"}
    counts = Counter((step.variant, step.id) for step in steps if step.repetition > 0)
    assert counts == {(variant, each): rounds for variant in variants for each in asked}
    for turn in range(1, rounds + 1):
        of_turn = [step for step in steps if step.repetition == turn]
        orders = [[step.id for step in group] for _, group in itertools.groupby(of_turn, key=lambda step: step.variant)]
        assert all(each == orders[0] for each in orders)
        if asked:
            assert of_turn[0].variant == variants[0 if turn % 2 else -1]
    assert steps == order(ids, repetitions=rounds, timed_ids=asked, variants=variants, seed=seed)


def test_neighbours_share_a_process() -> None:
    steps = order(["1", "2"], repetitions=6, timed_ids=["1", "2"], variants=["artifact", "base"], seed=1)
    assert [block[0].variant[0] for block in blocks(steps)] == list("abababa")
    rows = [Timed(variant=s.variant, id=s.id, repetition=s.repetition, values={}) for s in steps]  # type: ignore[arg-type]
    assert len(in_rounds(rows, "artifact")) == len(in_rounds(rows, "base")) == 12


@pytest.mark.parametrize(
    ("ids", "asked", "rounds", "variants", "said"),
    [
        (["a", "a"], [], 5, ["artifact"], "the same id"),
        (["a"], ["b"], 5, ["artifact"], "not asked"),
        (["a"], ["a"], 4, ["artifact"], "too few"),
        (["a"], ["a"], 5, [], "not asked"),
    ],
)
def test_an_order_that_makes_no_sense(
    ids: list[str], asked: list[str], rounds: int, variants: list[str], said: str
) -> None:
    with pytest.raises(MpaError, match=said):
        order(ids, repetitions=rounds, timed_ids=asked, variants=variants, seed=0)


def test_drift_finds_a_slowdown_and_rarely_cries_wolf() -> None:
    rng = np.random.default_rng(5)
    quiet = [drift(list(rng.lognormal(0.0, 0.05, 50))) for _ in range(200)]
    slow = [drift(list(rng.lognormal(0.0, 0.05, 50) * np.linspace(1.0, 1.3, 50))) for _ in range(100)]
    assert sum(each != 0 for each in quiet) <= 12
    assert all(0.05 < each < 0.3 for each in slow)


def test_a_short_run_has_no_drift() -> None:
    assert drift([]) == drift([1.0, 9.0, 9.0, 9.0]) == 0.0


def test_the_length_of_a_question_is_taken_out() -> None:
    rows = [
        Timed(variant="base", id=name, repetition=r, values={"ttft_s": size * slow})
        for r, slow in ((1, 1.0), (2, 1.0), (3, 1.0))
        for name, size in (("short", 1.0), ("long", 7.0))
    ]
    assert over_question_medians(rows, "ttft_s") == [1.0] * 6
    assert over_question_medians(rows, "tpot_s") == []
