"""Bounds that hold for few questions and for equal answers: their coverage is computed, not believed."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from mpa_edge.metrics.gain import accuracy_result, bounds, judge, not_worse, settling
from mpa_edge.metrics.interval import mean_bounds
from mpa_edge.metrics.paired import bootstrap_ci95

RATES = (0.0, 0.005, 0.01, 0.03, 0.0625, 0.1, 0.125, 0.2, 0.3, 0.5)


def probability(n: int, counts: tuple[int, int, int], rates: tuple[float, float, float]) -> float:
    if any(count and not rate for count, rate in zip(counts, rates, strict=True)):
        return 0.0
    logs = (count * math.log(rate) - math.lgamma(count + 1) for count, rate in zip(counts, rates, strict=True) if count)
    return math.exp(math.lgamma(n + 1) + sum(logs))


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.05, 0.025])
@pytest.mark.parametrize("n", [10, 24, 50, 100])
def test_each_bound_of_a_difference_holds_as_often_as_it_says(n: int, level: float) -> None:
    """All outcomes of n pairs, gained and lost at every mixture of rates: exact coverage of both one-sided bounds."""
    outcomes = [(up, down, n - up - down) for up in range(n + 1) for down in range(n + 1 - up) if max(up, down) <= 75]
    ids = [str(i) for i in range(n)]
    bounds = [
        mean_bounds([1.0] * up + [-1.0] * down + [0.0] * rest, ids, level=level, low=-1, high=1)
        for up, down, rest in outcomes
    ]
    for gained, lost in product(RATES, RATES):
        rates = (gained, lost, 1 - gained - lost)
        weights = [probability(n, counts, rates) for counts in outcomes]
        assert sum(weights) > 0.9999
        low = sum(w for w, (lower, _) in zip(weights, bounds, strict=True) if lower <= gained - lost + 1e-9)
        high = sum(w for w, (_, upper) in zip(weights, bounds, strict=True) if upper >= gained - lost - 1e-9)
        assert min(low, high) >= 1 - level, (gained, lost)


def images(rng: np.random.Generator, n: int, per: int, gained: float, lost: float, alike: float) -> np.ndarray:
    """Changes of n questions, `per` of an image; in the share `alike` of the images all questions change alike."""
    own, of_image = rng.random(n), np.repeat(rng.random(n // per), per)
    draw = np.where(np.repeat(rng.random(n // per) < alike, per), of_image, own)
    return np.where(draw < gained, 1.0, np.where(draw < gained + lost, -1.0, 0.0))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "per"), [(24, 4), (50, 5), (100, 2)])
@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_questions_about_one_image_count_together(n: int, per: int, alike: float) -> None:
    rng, names = np.random.default_rng(n + per), np.arange(n) // per
    for gained, lost in ((0.0, 0.02), (0.0, 0.1), (0.05, 0.05), (0.3, 0.05), (0.3, 0.3)):
        found = [
            mean_bounds(images(rng, n, per, gained, lost, alike), names, level=0.05, low=-1, high=1)
            for _ in range(1000)
        ]
        assert np.mean([lower <= gained - lost for lower, _ in found]) >= 0.94
        assert np.mean([upper >= gained - lost for _, upper in found]) >= 0.94


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 24, 50, 100])
@pytest.mark.parametrize("kept", [0.5, 0.8, 0.98, 1.0])
def test_the_share_of_the_gain_that_is_certainly_left_is_no_more_than_is_left(n: int, kept: float) -> None:
    """Of the questions that aligned gained, a share is kept; the bound is above it in at most 6 of 100 benchmarks."""
    rng, wrong = np.random.default_rng(n), 0
    names = [str(i) for i in range(n)]
    for _ in range(1000):
        base = (rng.random(n) < 0.4).astype(float)
        aligned = np.where(rng.random(n) < 0.5, 1.0, base)
        shipped = np.where(rng.random(n) < kept, aligned, base)
        # retained_lower is the largest share of which this is said
        wrong += bounds((shipped - base) - kept * (aligned - base), names)[0] > 0
    assert wrong / 1000 <= 0.06


def test_equal_answers_leave_the_doubt_that_three_of_24_differ() -> None:
    """As many as differ unseen in one of twenty such samples."""
    names = [str(i) for i in range(24)]
    base, aligned = [0.0] * 12 + [1.0] * 12, [1.0] * 24
    low, high = mean_bounds([0.0] * 24, names, level=0.05, low=-1, high=1)
    assert low == pytest.approx(-(1 - 0.05 ** (1 / 24))) == pytest.approx(-0.1173, abs=1e-4)
    assert high == -low
    result = accuracy_result(base, aligned, aligned, names)
    assert result.retained_gain == 1.0
    assert result.retained_gain_lower is not None
    assert 0.7 < result.retained_gain_lower < 0.8
    assert result.artifact.ci95 == pytest.approx((0.025 ** (1 / 24), 1.0))
    assert not not_worse(aligned, aligned, names)
    small = judge([0.0] * 4 + [1.0] * 20, aligned, aligned, names)
    assert small.verdict == "inconclusive"
    assert small.n_to_settle is not None
    assert small.n_to_settle > 40


def test_two_models_with_equal_answers_differ_by_at_most_what_was_not_seen() -> None:
    names = [str(i) for i in range(50)]
    low, high = bootstrap_ci95([0.0] * 50, names, resamples=100, seed=0)
    assert (low, high) == pytest.approx((-(1 - 0.025 ** (1 / 50)), 1 - 0.025 ** (1 / 50)))


def test_partial_scores_keep_the_doubt_of_a_whole_one() -> None:
    """Nothing was lost but a tenth of one score: a whole one may be lost as likely as if nothing had been lost."""
    names = [str(i) for i in range(24)]
    low = mean_bounds([-0.1] + [0.0] * 23, names, level=0.05, low=-1, high=1)[0]
    assert -0.14 < low < -0.117


def test_with_many_questions_it_is_the_usual_interval() -> None:
    """A gain of 19.6 points on 1,500 questions: within 0.1 points of the normal approximation."""
    values = [1.0] * 400 + [-1.0] * 106 + [0.0] * 994
    low, high = mean_bounds(values, [str(i) for i in range(1500)], level=0.025, low=-1, high=1)
    reach = 1.96 * np.std(values) / math.sqrt(1500)
    assert (low, high) == pytest.approx((0.196 - reach, 0.196 + reach), abs=0.001)


def test_of_one_image_nothing_is_known() -> None:
    assert mean_bounds([0.5] * 9, ["one"] * 9, level=0.05, low=0, high=1) == (0, 1)


def test_more_questions_settle_what_noise_and_the_unseen_leave_open() -> None:
    equal = [0.5] * 3 + [0.0] * 21
    n = settling(np.array(equal), [str(i) for i in range(24)])
    assert n is not None
    assert (
        mean_bounds(equal * (n // 24 + 1), [str(i) for i in range(24 * (n // 24 + 1))], level=0.05, low=-1, high=1)[0]
        > 0
    )
