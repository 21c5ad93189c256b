from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_edge.errors import MpaError
from mpa_edge.metrics.paired import Flips, bootstrap_ci95, flips, mcnemar_p

counts = st.integers(0, 400)


def exact(gained: int, lost: int) -> Fraction:
    """Two-sided binomial test of one half, in rational numbers, by adding up every split that is as uneven."""
    n = gained + lost
    uneven = [k for k in range(n + 1) if abs(2 * k - n) >= abs(gained - lost)]
    return Fraction(sum(math.comb(n, k) for k in uneven), 2**n)


@given(counts, counts)
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    assert mcnemar_p(gained, lost) == pytest.approx(float(exact(gained, lost)), rel=1e-9)
    assert mcnemar_p(gained, lost) == mcnemar_p(lost, gained)


@pytest.mark.parametrize(
    ("gained", "lost"), [(499, 500), (500, 500), (600, 400), (560, 440), (900, 1100), (1500, 1450)]
)
def test_many_flips_do_not_overflow_and_stay_exact(gained: int, lost: int) -> None:
    assert mcnemar_p(gained, lost) == pytest.approx(float(exact(gained, lost)), rel=1e-8)


def test_the_ends_of_mcnemar() -> None:
    assert mcnemar_p(0, 0) == mcnemar_p(5, 5) == mcnemar_p(1, 0) == 1.0
    assert mcnemar_p(5, 0) == 2 / 2**5
    assert mcnemar_p(100_000, 0) == 0.0
    assert 0 < mcnemar_p(1000, 0) < 1e-300


scores = st.lists(st.sampled_from([0.0, 0.3, 0.49, 0.5, 0.6, 1.0]), max_size=50)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_flips_count_each_direction(pairs: list[tuple[bool, bool]]) -> None:
    before, after = [float(b) for b, _ in pairs], [float(a) for _, a in pairs]
    changed = flips(before, after)
    assert changed.gained - changed.lost == sum(after) - sum(before)
    assert changed.gained + changed.lost == sum(b != a for b, a in pairs)
    assert flips(after, before) == Flips(gained=changed.lost, lost=changed.gained)


@given(scores)
def test_partial_scores_count_as_right_from_one_half_on(values: list[float]) -> None:
    right = [float(value >= 0.5) for value in values]
    assert flips(values, right) == Flips(gained=0, lost=0)
    assert flips([0.0] * len(values), values) == Flips(gained=int(sum(right)), lost=0)


def test_flips_of_different_questions_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        flips([0.0], [0.0, 1.0])


def correlated(seed: int, clusters: int = 60, size: int = 5) -> tuple[list[float], list[str]]:
    """Questions about one image stand and fall together: one draw for the image, repeated with a little noise."""
    rng = np.random.default_rng(seed)
    values = [float(rng.random() < p) for p in rng.choice([0.1, 0.9], clusters) for _ in range(size)]
    return values, [f"image-{i // size}" for i in range(clusters * size)]


def test_an_interval_holds_the_truth_nineteen_times_in_twenty_and_only_by_cluster() -> None:
    def coverage(by_image: bool) -> float:
        held = 0
        for seed in range(150):
            values, images = correlated(seed)
            clusters = images if by_image else [str(i) for i in range(len(values))]
            low, high = bootstrap_ci95(values, clusters, resamples=300, seed=seed)
            held += low <= 0.5 <= high
        return held / 150

    assert 0.90 <= coverage(by_image=True) <= 0.99
    assert coverage(by_image=False) < 0.88


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.integers(1, 10))
def test_an_interval_is_ordered_holds_the_mean_and_turns_with_the_sign(values: list[float], n_images: int) -> None:
    images = [f"i{i % n_images}" for i in range(len(values))]
    low, high = bootstrap_ci95(values, images, resamples=50, seed=3)
    assert -1 <= low <= sum(values) / len(values) + 1e-12
    assert sum(values) / len(values) - 1e-12 <= high <= 1
    assert bootstrap_ci95(values, images, resamples=50, seed=3) == (low, high)
    turned = bootstrap_ci95([-value for value in values], images, resamples=50, seed=3)
    assert turned == pytest.approx((-high, -low))


def test_images_with_more_questions_weigh_more() -> None:
    values, images = ([1.0] * 9 + [0.0]) * 100, [f"{i // 10}{'ab'[i % 10 == 9]}" for i in range(1000)]
    low, high = bootstrap_ci95(values, images, resamples=500, seed=0)
    assert low < 0.9 < high
    # each image is 0.9 off what its size would give: 9 - 8.1, 0 - 0.9
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(200 * 0.9**2) / 1000, rel=0.15)


def test_one_image_says_nothing_and_no_question_is_an_error() -> None:
    assert bootstrap_ci95([0.0, 1.0], ["a", "a"], resamples=20, seed=0, low=0.0) == (0.0, 1.0)
    with pytest.raises(MpaError, match="evaluate on at least one question"):
        bootstrap_ci95([], [], resamples=20, seed=0)
