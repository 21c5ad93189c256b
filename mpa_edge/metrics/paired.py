"""Two models on the same questions: interval of an accuracy or of a difference, exact McNemar test, flips.

The bootstrap resamples images, not questions: answers to questions about one image are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr

from mpa_edge.errors import MpaError
from mpa_edge.metrics.interval import mean_bounds
from mpa_edge.types import Record

ENOUGH = 100


class Flips(Record):
    """Questions whose correctness changed. Correct means a score of at least one half."""

    gained: int
    """Wrong before, right after."""
    lost: int
    """Right before, wrong after."""


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; of nothing it is 0."""
    return sum(values) / len(values) if values else 0.0


def bootstrap_ci95(
    values: Sequence[float], clusters: Sequence[str], *, resamples: int, seed: int, low: float = -1.0
) -> tuple[float, float]:
    """95 % interval of the mean of `values`, resampling whole clusters. Two numbers, low first.

    The percentile interval of the bootstrap where ENOUGH clusters are on either side of the mean; a resample cannot
    hold what was not seen, so with fewer the bounds of `interval.mean_bounds` count.
    `clusters`: the image of each value; `low`: the least that a value can be, -1 for a difference of scores, 0 for a
    score; the most is 1. Raises MpaError where there is nothing to resample.
    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 8 and 13.

    >>> low, high = bootstrap_ci95([1.0] * 24, [str(i) for i in range(24)], resamples=100, seed=0, low=0)
    >>> round(low, 3), high
    (0.858, 1.0)
    """
    if not values:
        raise MpaError("no question was answered, so there is no interval: evaluate on at least one question")
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, weights=np.asarray(values, float))
    sizes = np.bincount(index)
    shares = sums / sizes - sums.sum() / sizes.sum()
    if min(int((shares > 0).sum()), int((shares < 0).sum())) < ENOUGH:
        return mean_bounds(values, clusters, level=0.025, low=low, high=1.0)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):  # one at a time: a table of draws would not fit for a million questions
        drawn = rng.integers(0, len(sums), len(sums))
        means[i] = sums[drawn].sum() / sizes[drawn].sum()
    lower, upper = np.percentile(means, [2.5, 97.5])
    return float(lower), float(upper)


def flips(before: Sequence[float], after: Sequence[float]) -> Flips:
    """Count what changed in either direction.

    >>> flips([0, 1, 1], [1, 1, 0])
    Flips(gained=1, lost=1)
    """
    pairs = [(b >= 0.5, a >= 0.5) for b, a in zip(before, after, strict=True)]
    return Flips(gained=pairs.count((False, True)), lost=pairs.count((True, False)))


def mcnemar_p(gained: int, lost: int) -> float:
    """Two-sided exact McNemar test: the binomial probability of so uneven a split of the flips under no difference.

    Source: McNemar 1947, Psychometrika 12(2); exact form: Fagerland et al. 2013, BMC Med Res Methodol 13:91.

    >>> mcnemar_p(1, 9)
    0.021484375
    >>> mcnemar_p(0, 0)
    1.0
    """
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def mcnemar_above(gained: int, lost: int) -> float:
    """One-sided exact McNemar test: probability of so many gains among the flips if neither direction were likelier.

    >>> mcnemar_above(9, 1)
    0.0107421875
    >>> mcnemar_above(0, 0)
    1.0
    """
    return float(bdtr(lost, gained + lost, 0.5))
