"""Does the gain hold? A verdict with reasons, from the same questions asked of three models.

With b, a and q the scores of base, aligned (both full precision, on the host) and of the artifact on the device:

- above base: the artifact is right more often than base, by McNemar's exact test on the flips, one-sided, 5 %
- retained: the mean of (q - b) - r (a - b) has a lower confidence bound above 0: at least the share r of the gain is
  left. One-sided, 5 %; questions about one image are one cluster; the bounds are those of `interval.mean_bounds`, which
  hold for few questions and for equal answers as well
- not worse than aligned: the lower bound of q - a is above minus the margin. Reported, not required

The verdict is `holds` where the first two are true. It is `lost` where the upper bound of the same mean is below 0, or
where aligned is already worse than base. Everything between is `inconclusive`, with the number of questions that would
settle it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpa_edge.errors import MpaError
from mpa_edge.metrics.interval import mean_bounds, t_quantile
from mpa_edge.metrics.paired import Flips, bootstrap_ci95, flips, mcnemar_above
from mpa_edge.types import Record

Word = Literal["holds", "lost", "inconclusive"]
Array = NDArray[np.float64]
LEVEL = 0.05
POWER = 0.8
SHARE = 0.5
MARGIN = 0.02


class ModelAccuracy(Record):
    """One model on the questions."""

    n: int
    """Questions."""
    correct: float
    """Sum of the scores."""
    value: float
    """Mean of the scores, 0 to 1."""
    ci95: tuple[float, float]
    """95 % interval of the mean, clustered by image."""


class AccuracyResult(Record):
    """Base, aligned and artifact on the same questions."""

    base: ModelAccuracy
    """The student before, fp32 on the host."""
    aligned: ModelAccuracy
    """The student after, fp32 on the host."""
    artifact: ModelAccuracy
    """What was exported, on the device."""
    retained_gain: float | None
    """(artifact - base) / (aligned - base); null where there was no gain."""
    retained_gain_lower: float | None
    """Lower 95 % bound of it (one-sided, Fieller); null where there was no gain beyond noise."""
    p_mcnemar: float
    """Artifact above base, exact, one-sided."""
    flips: Flips
    """Base against artifact."""


class Judgement(Record):
    """The verdict on an accuracy."""

    verdict: Word
    """holds, lost or inconclusive."""
    reasons: tuple[str, ...]
    """Why."""
    n_to_settle: int | None
    """Questions that would settle an inconclusive verdict four times in five; null where there is nothing to settle."""


def clustered(values: Sequence[float] | Array, clusters: Sequence[str]) -> tuple[float, float, int]:
    """(mean, cluster-robust standard error of the mean, number of clusters).

    >>> mean, error, n = clustered([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"])
    >>> mean, round(error, 3), n
    (0.5, 0.5, 2)
    """
    x = np.asarray(values, float)
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    n_clusters = int(index.max()) + 1
    if n_clusters < 2:
        return float(x.mean()), math.inf, n_clusters
    sums = np.bincount(index, weights=x - x.mean())
    variance = float((sums**2).sum()) / len(x) ** 2 * n_clusters / (n_clusters - 1)
    return float(x.mean()), math.sqrt(variance), n_clusters


def bounds(values: Array, clusters: Sequence[str], most: float = 1.0) -> tuple[float, float]:
    """One-sided 95 % lower and upper bound of a mean of clustered values between -most and most."""
    return mean_bounds(values, clusters, level=LEVEL, low=-most, high=most)


def retained_lower(base: Array, aligned: Array, artifact: Array, clusters: Sequence[str]) -> float | None:
    """Largest share r that the artifact retains with 95 % confidence (one-sided); None where the gain itself is noise.

    Found by bisection on the test of (q - b) - r (a - b) > 0: Fieller's bound. Source: Fieller 1954, JRSS B 16(2).
    """
    if bounds(aligned - base, clusters)[0] <= 0:
        return None
    low, high = -10.0, 10.0
    for _ in range(30):
        middle = (low + high) / 2
        most = max(1.0, abs(middle), abs(1 - middle))
        holds = bounds((artifact - base) - middle * (aligned - base), clusters, most)[0] > 0
        low, high = (middle, high) if holds else (low, middle)
    return round(low, 6)


def retained_gain(base: float, aligned: float, artifact: float) -> float | None:
    """Share of the gain that is left in the artifact; None where there was no gain.

    >>> retained_gain(0.5, 0.7, 0.65)
    0.75
    >>> retained_gain(0.5, 0.5, 0.6) is None
    True
    """
    return round((artifact - base) / (aligned - base), 6) if aligned > base else None


def accuracy_result(
    base: Sequence[float],
    aligned: Sequence[float],
    artifact: Sequence[float],
    clusters: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> AccuracyResult:
    """All figures of three models' scores (0 to 1), on the same questions in the same order.

    `clusters`: the image of each question. MpaError where the lengths differ.
    """
    if not len(base) == len(aligned) == len(artifact) == len(clusters):
        raise MpaError("base, aligned and artifact were asked different questions: rerun the benchmark")
    b, a, q = (np.asarray(scores, float) for scores in (base, aligned, artifact))
    changed = flips(base, artifact)

    def model(scores: Array) -> ModelAccuracy:
        interval = bootstrap_ci95(scores.tolist(), clusters, resamples=resamples, seed=seed, low=0.0)
        return ModelAccuracy(n=len(scores), correct=float(scores.sum()), value=float(scores.mean()), ci95=interval)

    return AccuracyResult(
        base=model(b),
        aligned=model(a),
        artifact=model(q),
        retained_gain=retained_gain(float(b.mean()), float(a.mean()), float(q.mean())),
        retained_gain_lower=retained_lower(b, a, q, clusters),
        p_mcnemar=mcnemar_above(changed.gained, changed.lost),
        flips=changed,
    )


def judge(
    base: Sequence[float],
    aligned: Sequence[float],
    artifact: Sequence[float],
    clusters: Sequence[str],
    *,
    share: float = SHARE,
) -> Judgement:
    """Whether at least `share` of the gain is left in the artifact; arguments as in `accuracy_result`."""
    b, a, q = (np.asarray(scores, float) for scores in (base, aligned, artifact))
    gain = a - b
    low, high = bounds(gain, clusters)
    if high < 0:
        reasons: tuple[str, ...] = ("aligned is worse than base on the host already",)
        return Judgement(verdict="lost", reasons=reasons, n_to_settle=None)
    if low <= 0:
        reasons = (f"aligned is not certainly better than base on these {len(gain)} questions",)
        return Judgement(verdict="inconclusive", reasons=reasons, n_to_settle=settling(gain, clusters))
    kept, percent = (q - b) - share * gain, f"{share:.0%}"
    low, high = bounds(kept, clusters)
    changed = flips(base, artifact)
    p = mcnemar_above(changed.gained, changed.lost)
    if low > 0 and p < LEVEL:
        reasons = (f"more than {percent} of the gain is left, with 95 % confidence", f"better than base, p = {p:.2g}")
        return Judgement(verdict="holds", reasons=reasons, n_to_settle=None)
    if high < 0:
        reasons = (f"less than {percent} of the gain is left, with 95 % confidence",)
        return Judgement(verdict="lost", reasons=reasons, n_to_settle=None)
    why = [f"whether {percent} of the gain is left cannot be told from {len(b)} questions"] if low <= 0 else []
    why += [f"not certainly better than base, p = {p:.2g}"] if p >= LEVEL else []
    return Judgement(verdict="inconclusive", reasons=tuple(why), n_to_settle=settling(kept, clusters))


def not_worse(
    aligned: Sequence[float], artifact: Sequence[float], clusters: Sequence[str], margin: float = MARGIN
) -> bool:
    """Whether the artifact is within `margin` of aligned, one-sided 5 %."""
    return bounds(np.asarray(artifact, float) - np.asarray(aligned, float), clusters)[0] > -margin


def settling(values: Array, clusters: Sequence[str]) -> int | None:
    """Questions with which a mean of this size would differ from 0 in four of five benchmarks; None where it is 0.

    n x effect has to exceed sqrt(n) x the error of one question, and the doubt about what was not seen, which is that
    of -log(0.05) images; clusters are assumed to keep their size.
    """
    mean, error, n_clusters = clustered(values, clusters)
    if mean == 0 or math.isinf(error):
        return None
    n, effect = len(values), abs(mean)
    reach = t_quantile(1 - LEVEL, n_clusters - 1) + t_quantile(POWER, n_clusters - 1)
    noise, unseen = reach * error * math.sqrt(n), -math.log(LEVEL) * n / n_clusters
    root = (noise + math.sqrt(noise**2 + 4 * effect * unseen)) / (2 * effect)
    return max(n + 1, math.ceil(root**2))
