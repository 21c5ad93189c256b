"""Bounds on a mean that hold for few values and for equal ones: exact where theory has an exact answer.

A bootstrap, and any interval made from the spread of the values alone, knows no doubt where all values are equal: it
cannot resample what was not seen. Here each direction gets the doubt of one more image that speaks fully against it:
24 equal answers of two models leave room for 12 % that differ. For one kind of outcome and one question an image, the
bounds are those of Clopper and Pearson; for many questions, those of the usual normal approximation.

Sources: Clopper and Pearson 1934, Biometrika 26(4); the adverse pseudo-observation of weighted counts, Fay and Feuer
1997, Statistics in Medicine 16(7); both directions combined, Newcombe 1998, Statistics in Medicine 17(22), 2635-2650,
method 10, and Zou and Donner 2008, Statistics in Medicine 27(10).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

Array = NDArray[np.float64]
TINY = 1e-12


def t_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t for any number of degrees of freedom from 1 on.

    >>> [round(t_quantile(0.95, degrees), 3) for degrees in (1, 2, 30, 10**6)]
    [6.314, 2.92, 1.697, 1.645]
    """
    return float(stdtrit(degrees, p))


def mean_bounds(
    values: Sequence[float] | Array, clusters: Sequence[str], *, level: float, low: float, high: float
) -> tuple[float, float]:
    """Lower and upper bound of the mean of clustered values, each of which fails to hold with probability `level`.

    `clusters`: the image of each value; `low`, `high`: what values can be at least (0 or less) and at most (0 or more).
    Of one image, nothing can be said but low and high.
    """
    x = np.asarray(values, float)
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    lower = _lower_bound(x, index, level, low, high)
    return lower, -_lower_bound(-x, index, level, -high, -low)


def _lower_bound(x: Array, index: NDArray[np.int64], level: float, low: float, high: float) -> float:
    sizes = np.bincount(index).astype(float)
    if len(sizes) < 2:
        return low
    up, down = (np.bincount(index, weights=np.maximum(part, 0)).astype(float) for part in (x, -x))
    mean_up, mean_down = float(up.sum()) / len(x), float(down.sum()) / len(x)
    # how far off each direction may be
    less = mean_up - _share_bound(up, sizes, level, high, more=0.0)
    more = _share_bound(down, sizes, level, -low, more=1.0) - mean_down
    # both share the questions: the more of one, the fewer of the other
    a, b = up - mean_up * sizes, down - mean_down * sizes
    spread = math.sqrt(float((a**2).sum() * (b**2).sum()))
    together = float((a * b).sum()) / spread if spread > 0 else 0.0
    reach = math.sqrt(max(0.0, less**2 + more**2 - 2 * together * less * more))
    return max(low, mean_up - mean_down - reach)


def _share_bound(sums: Array, sizes: Array, level: float, most: float, *, more: float) -> float:
    """Bound of a mean of values from 0 to `most`: the lower one where `more` is 0, the upper one where it is 1.

    A quantile of the beta distribution that has the mean and the variance of the clusters with one more, of average
    size, in which every value is `more` x `most`.
    """
    if most <= 0:
        return 0.0
    size, n = float(sizes.mean()), len(sizes) + 1
    mean = (float(sums.sum()) / most + more * size) / (float(sizes.sum()) + size)
    if not TINY < mean < 1 - TINY:
        return most * round(mean)
    squares = float(((sums / most - mean * sizes) ** 2).sum()) + ((more - mean) * size) ** 2
    variance = squares / (float(sizes.sum()) + size) ** 2 * n / (n + 1)
    total = max(mean * (1 - mean) / variance - 1, TINY)
    return most * float(betaincinv(mean * total, (1 - mean) * total, 1 - level if more else level))
