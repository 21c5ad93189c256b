"""Does the gain hold? A verdict with reasons, from the same questions asked of three models.

With b, a and q the scores of base, aligned (both full precision, on the host) and of the artifact on the device:

- above base: the artifact is right more often than base, by McNemar's exact test on the flips, one-sided, 5 %
- retained: the mean of (q - b) - r (a - b) has a lower confidence bound above 0: at least the share r of the gain is
  left. One-sided, 5 %; questions about one image are one cluster; the bounds are those of `interval.mean_bounds`, which
  hold for few questions and for equal answers as well
- not worse than aligned: the lower bound of q - a is above minus the margin. Reported, not required

Where the scores are against a teacher's answers and a person has reviewed some, the first two are about the true means
as `prediction_powered.estimate` gives them: instead of the test on the flips, the lower bound of q - b is above 0. That
the artifact is as good as aligned, nearly the same model, remains a question of agreement with the teacher.

The verdict is `holds` where the first two are true. It is `lost` where the upper bound of the same mean is below 0, or
where aligned is already worse than base. Everything between is `inconclusive`, with the number of questions that would
settle it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpa_edge.errors import MpaError
from mpa_edge.metrics.interval import mean_bounds, t_quantile
from mpa_edge.metrics.paired import Flips, bootstrap_ci95, flips, mcnemar_above
from mpa_edge.metrics.prediction_powered import Estimate, estimate
from mpa_edge.types import Record

Word = Literal["holds", "lost", "inconclusive"]
Array = NDArray[np.float64]
Reviewed = Mapping[int, tuple[float, float, float] | None]
"""Position of each reviewed question -> true scores of base, aligned and artifact; None: it cannot be answered."""
LEVEL = 0.05
POWER = 0.8
SHARE = 0.5
GAIN = (-1.0, 1.0, 0.0)
"""Weights of base, aligned and artifact in the gain."""
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


@dataclass(frozen=True)
class Scores:
    """Three models on the same questions."""

    models: Array
    """(3, questions): base, aligned, artifact."""
    clusters: Sequence[str]
    """The image, or group of images, of each question."""
    reviewed: Reviewed | None = None
    """What is true, where the scores are against a teacher's answers."""

    def true_mean(self, *weights: float, level: float = LEVEL) -> Estimate:
        """True mean of the weighted sum of the three scores; `level`: probability that the interval misses."""
        true = {i: None if row is None else float(np.dot(weights, row)) for i, row in (self.reviewed or {}).items()}
        least, most = (sum(max(0.0, sign * weight) for weight in weights) for sign in (-1, 1))
        return estimate(np.dot(weights, self.models), true, self.clusters, low=-least, high=most, level=level)

    def bounds(self, *weights: float) -> tuple[float, float]:
        """One-sided 95 % bounds of the mean of the weighted sum of the three scores."""
        if self.reviewed:
            return self.true_mean(*weights, level=2 * LEVEL).ci95
        return bounds(np.dot(weights, self.models), self.clusters, max(1.0, *map(abs, weights)))


def retained_lower(scores: Scores) -> float | None:
    """Largest share r that the artifact retains with 95 % confidence (one-sided); None where the gain itself is noise.

    Found by bisection on the test of (q - b) - r (a - b) > 0: Fieller's bound. Source: Fieller 1954, JRSS B 16(2).
    """
    if scores.bounds(*GAIN)[0] <= 0:
        return None
    low, high = -10.0, 10.0
    for _ in range(30):
        middle = (low + high) / 2
        holds = scores.bounds(middle - 1, -middle, 1)[0] > 0
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
    reviewed: Reviewed | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> AccuracyResult:
    """All figures of three models' scores (0 to 1), on the same questions in the same order.

    `clusters`: the image of each question; `reviewed`: accuracies and gain are the true ones then, the flips still
    those against the teacher's answers. MpaError where the lengths differ.
    """
    if not len(base) == len(aligned) == len(artifact) == len(clusters):
        raise MpaError("base, aligned and artifact were asked different questions: rerun the benchmark")
    scores = Scores(np.asarray([base, aligned, artifact], float), clusters, reviewed)
    changed = flips(base, artifact)

    def model(number: int) -> ModelAccuracy:
        own = scores.models[number]
        if reviewed:
            found = scores.true_mean(*np.eye(3)[number])
            value, interval = found.value, found.ci95
        else:
            value = float(own.mean())
            interval = bootstrap_ci95(own.tolist(), clusters, resamples=resamples, seed=seed, low=0.0)
        return ModelAccuracy(n=len(own), correct=value * len(own), value=value, ci95=interval)

    models = [model(number) for number in range(3)]
    return AccuracyResult(
        base=models[0],
        aligned=models[1],
        artifact=models[2],
        retained_gain=retained_gain(*(one.value for one in models)),
        retained_gain_lower=retained_lower(scores),
        p_mcnemar=mcnemar_above(changed.gained, changed.lost),
        flips=changed,
    )


def judge(
    base: Sequence[float],
    aligned: Sequence[float],
    artifact: Sequence[float],
    clusters: Sequence[str],
    *,
    reviewed: Reviewed | None = None,
    share: float = SHARE,
) -> Judgement:
    """Whether at least `share` of the gain is left in the artifact; arguments as in `accuracy_result`."""
    scores = Scores(np.asarray([base, aligned, artifact], float), clusters, reviewed)
    n = f"{len(reviewed)} reviewed of {len(base)} questions" if reviewed else f"{len(base)} questions"
    low, high = scores.bounds(*GAIN)
    if high < 0:
        reasons: tuple[str, ...] = ("aligned is worse than base on the host already",)
        return Judgement(verdict="lost", reasons=reasons, n_to_settle=None)
    if low <= 0:
        reasons = (f"aligned is not certainly better than base on these {n}",)
        return Judgement(verdict="inconclusive", reasons=reasons, n_to_settle=_settling(scores, GAIN))
    kept, percent = (share - 1, -share, 1.0), f"{share:.0%}"
    low, high = scores.bounds(*kept)
    changed = flips(base, artifact)
    p = mcnemar_above(changed.gained, changed.lost)
    better, how = (scores.bounds(-1, 0, 1)[0] > 0, "with 95 % confidence") if reviewed else (p < LEVEL, f"p = {p:.2g}")
    if low > 0 and better:
        reasons = (f"more than {percent} of the gain is left, with 95 % confidence", f"better than base, {how}")
        return Judgement(verdict="holds", reasons=reasons, n_to_settle=None)
    if high < 0:
        reasons = (f"less than {percent} of the gain is left, with 95 % confidence",)
        return Judgement(verdict="lost", reasons=reasons, n_to_settle=None)
    why = [f"whether {percent} of the gain is left cannot be told from {n}"] if low <= 0 else []
    why += [] if better else [f"not certainly better than base, {how}"]
    return Judgement(verdict="inconclusive", reasons=tuple(why), n_to_settle=_settling(scores, kept))


def not_worse(
    aligned: Sequence[float], artifact: Sequence[float], clusters: Sequence[str], margin: float = MARGIN
) -> bool:
    """Whether the artifact is within `margin` of aligned, one-sided 5 %."""
    return bounds(np.asarray(artifact, float) - np.asarray(aligned, float), clusters)[0] > -margin


def _settling(scores: Scores, weights: tuple[float, float, float]) -> int | None:
    """As `settling`; None for a review, whose reasons say how many rows it has."""
    return None if scores.reviewed else settling(np.dot(weights, scores.models), scores.clusters)


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
