"""The true mean of a score, from many rows that a teacher labelled and a few of them that a person reviewed.

Each row has a silver score, against the teacher's answer. The reviewed rows, a simple random sample, have a true score
as well, or none where the question cannot be answered: those are no part of what is estimated. The estimate is the
true mean of the reviewed rows, corrected by how their silver scores differ from those of all rows:

    theta = mean(true, reviewed) + lambda (mean(silver, all) - mean(silver, reviewed))

lambda is the slope of the true score on the silver one: PPI++ with power tuning, in the form in which the reviewed rows
are some of all N rows. (Compared with the N - n others only, the same lambda is (N - n) / N times as large.) The
variance is that of the residuals, true - lambda silver, over the reviewed rows, plus lambda squared times that of
silver over all rows, both clustered; a mean over the rows that can be answered is a ratio, and is linearized first.

A difference of two models is 0 in most rows, and the few reviewed rows in which teacher and person disagree about it
may by chance be none. So the residuals get half a row more in each direction, as paired proportions do, and the
quantile is Student's. Where the two scores hardly go together, silver rows add more noise than they remove: then the
reviewed rows count alone.

Sources: Angelopoulos, Duchi and Zrnic 2023, PPI++, arXiv 2311.01453; Agresti and Min 2005, Statistics in Medicine
24(5), 729-740 (half a pair more in each direction); Cochran 1977, Sampling Techniques, sections 6.3 (ratios), 7.2 (a
slope from n rows helps where its squared correlation exceeds about 1 / (n - 2), cf. Mani et al. 2025, No Free Lunch,
PMLR 306) and 12.6 (two-phase samples).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpa_edge.errors import MpaError
from mpa_edge.metrics.interval import mean_bounds, t_quantile
from mpa_edge.types import Record

Array = NDArray[np.float64]
Method = Literal["prediction-powered", "reviewed rows alone"]
FEWEST = 20
"""Reviewed rows that can be answered below which no slope is estimated."""
ADDED = 1.0
"""Rows added to the residuals, half of them in each direction."""


class Estimate(Record):
    """A true mean."""

    value: float
    """Best guess, within the possible range."""
    ci95: tuple[float, float]
    """95 % interval, unless another level was asked for; within the possible range."""
    method: Method
    """Whether the silver scores helped."""
    weight: float
    """lambda, 0 to 1: how much the silver scores count."""


def estimate(
    silver: Sequence[float] | Array,
    true: Mapping[int, float | None],
    clusters: Sequence[str],
    *,
    low: float = 0.0,
    high: float = 1.0,
    level: float = 0.05,
) -> Estimate:
    """The true mean over all rows that can be answered.

    `silver`: a score for each row; `true`: position of each reviewed row -> its true score, None where its question
    cannot be answered; `clusters`: the image, or group of images, of each row; `low`, `high`: what a score can be (0 or
    less, 0 or more); `level`: probability that the interval misses. MpaError where no reviewed row can be answered.

    >>> silver = [1.0, 0.0, 1.0, 1.0, 0.0] * 40
    >>> found = estimate(silver, {i: silver[i] for i in range(50)}, [str(i) for i in range(200)])
    >>> found.method, round(found.value, 3), [round(end, 3) for end in found.ci95]
    ('prediction-powered', 0.6, [0.52, 0.68])
    """
    s, rows = np.asarray(silver, float), sorted(true)
    known = [row for row in rows if true[row] is not None]
    if not known:
        raise MpaError("no reviewed question can be answered: review more with mpa-edge review RUN")
    y = np.asarray([true[row] for row in known], float)
    mean = float(y.mean())
    weight = _slope(s, y, rows, known)
    if weight == 0.0:
        ends = mean_bounds(y, [clusters[row] for row in known], level=level / 2, low=low, high=high)
        return Estimate(value=mean, ci95=ends, method="reviewed rows alone", weight=0.0)
    _, groups = np.unique(np.asarray(clusters), return_inverse=True)
    value = mean + weight * float(s.mean() - s[rows].mean())
    residuals = _linear(y, rows, known) - weight * (s[rows] - s[rows].mean())
    variance = _variance(residuals, groups[rows], ADDED, max(high, -low) * len(rows) / len(known))
    variance += weight**2 * _variance(s - s.mean(), groups)
    degrees = min(len(known), len(np.unique(groups[rows]))) - 2
    reach = t_quantile(1 - level / 2, max(degrees, 1)) * math.sqrt(variance)
    ends = max(low, value - reach), min(high, value + reach)
    return Estimate(value=min(high, max(low, value)), ci95=ends, method="prediction-powered", weight=weight)


def _linear(y: Array, rows: Sequence[int], known: Sequence[int]) -> Array:
    """What each reviewed row adds to the mean of those that can be answered; one that cannot adds nothing."""
    found = np.zeros(len(rows))
    found[np.searchsorted(rows, known)] = (y - y.mean()) * len(rows) / len(known)
    return found


def _slope(s: Array, y: Array, rows: Sequence[int], known: Sequence[int]) -> float:
    """lambda, 0 to 1; 0 where too few reviewed rows, or too weak a correlation, would make silver scores do harm."""
    n, reviewed, u = len(known), s[rows], _linear(y, rows, known)
    spread = float(reviewed.std() * u.std())
    if n < FEWEST or spread == 0:
        return 0.0
    covariance = float((u * (reviewed - reviewed.mean())).mean())
    if covariance <= 0 or (covariance / spread) ** 2 <= 1 / (n - 2):
        return 0.0
    return min(1.0, covariance / float(s.var(ddof=1)))


def _variance(values: Array, groups: NDArray[np.int64], added: float = 0.0, size: float = 0.0) -> float:
    """Variance of the mean of clustered values with mean 0; `added` rows more are of `size`, half of them negative."""
    _, index = np.unique(groups, return_inverse=True)
    sums = np.bincount(index, weights=values)
    n, n_groups = len(values) + added, len(sums) + added
    return (float((sums**2).sum()) + added * size**2) / n**2 * n_groups / max(n_groups - 1, 1)
