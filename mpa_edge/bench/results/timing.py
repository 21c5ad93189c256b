"""From the seconds of single answers to figures with intervals, and the order in which questions are asked.

What a runtime does not report is left out of a row, and its figure has n = 0 and nulls. Medians, not means: a
background task that wakes up once must not move a figure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mpa_edge.bench.device.protocol import Line, Step
from mpa_edge.bench.results.records import METRICS, Figure, Timed
from mpa_edge.errors import MpaError

RESAMPLES = 2000
SEED = 0
LEAST_REPETITIONS = 5
# below this share, two halves of a run count as equal whatever the statistics say
DRIFT_SHARE = 0.03


def medians(samples: Sequence[float], *, resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[np.float64]:
    """Medians of bootstrap resamples. (n,) -> (resamples,); the same seed gives the same numbers.

    No resample is drawn: its k-th smallest value is the sample at n x U, U being the k-th smallest of n uniform
    numbers, which has a beta distribution. So thousands of samples take no longer than ten.
    """
    values = np.sort(np.asarray(samples, float))
    rng, n = np.random.default_rng(seed), len(values)
    above = rng.beta(n // 2 + 1, n - n // 2, resamples)
    # the middle one, or the upper of the two in the middle; below it, the largest of n / 2 uniform numbers
    below = above if n % 2 else above * rng.random(resamples) ** (2 / n)
    lower, upper = (np.minimum((n * u).astype(int), n - 1) for u in (below, above))
    return (values[lower] + values[upper]) / 2


def figure(samples: Sequence[float], unit: str) -> Figure:
    """Median, tails, and the 95 % percentile interval of the median (Efron and Tibshirani 1993, chapter 13).

    >>> figure([1.0, 2.0, 3.0], "s").p50
    2.0
    >>> figure([], "s")
    Figure(unit='s', n=0, p50=None, p90=None, p99=None, ci95=None)
    """
    if not samples:
        return Figure(unit=unit, n=0, p50=None, p90=None, p99=None, ci95=None)
    p50, p90, p99 = (float(value) for value in np.percentile(np.asarray(samples, float), [50, 90, 99]))
    ci95 = None
    if len(samples) > 1:
        low, high = np.percentile(medians(samples), [2.5, 97.5])
        ci95 = (float(low), float(high))
    return Figure(unit=unit, n=len(samples), p50=p50, p90=p90, p99=p99, ci95=ci95)


def timed(line: Line) -> Timed:
    """The timing of one answer line; what is no metric, not a number, or negative is left out.

    >>> timed(Line("answer", "base", 0, {"id": "q1", "repetition": 0, "ttft_s": 0.5, "tpot_s": None})).values
    {'ttft_s': 0.5}
    """
    kept = {key: float(line.values[key]) for key in METRICS if is_duration(line.values.get(key))}
    return Timed.model_validate(
        {"variant": line.variant, "id": line.values["id"], "repetition": line.values["repetition"], "values": kept}
    )


def is_duration(value: object) -> bool:
    """A finite number that is not negative.

    >>> [is_duration(value) for value in (0.5, 3, None, "1", True, -1.0, float("nan"))]
    [True, True, False, False, False, False, False]
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def loads(lines: Iterable[Line], variant: str) -> list[float]:
    """Cold load times of one variant: the first process that loaded it. A warm one reads from the page cache."""
    found = [line for line in lines if line.kind == "loaded" and line.variant == variant]
    cold = [line for line in found if line.values.get("cold")] or found[:1]
    return [float(line.values["load_s"]) for line in cold if is_duration(line.values.get("load_s"))]


def in_rounds(rows: Iterable[Timed], variant: str) -> list[Timed]:
    """Rows of one variant that count for the timing: repetition 1 and up, where variants took turns (see `order`)."""
    return [row for row in rows if row.variant == variant and row.repetition > 0]


def figures(rows: Iterable[Timed], loads_s: Sequence[float] = ()) -> dict[str, Figure]:
    """A figure for each of METRICS, of the rows of one variant; load_s has its own samples, one a cold process."""
    kept = list(rows)
    found = {name: [row.values[name] for row in kept if name in row.values] for name in METRICS}
    return {
        name: figure(list(loads_s) if name == "load_s" and loads_s else found[name], unit)
        for name, unit in METRICS.items()
    }


def order(
    ids: Sequence[str], *, repetitions: int, timed_ids: Sequence[str], variants: Sequence[str], seed: int
) -> tuple[Step, ...]:
    """Which model is asked which question, and when. MpaError where an order makes no sense.

    The first variant answers every id once: repetition 0, for the accuracy. Then come the rounds 1 to `repetitions`,
    for the timing: in each, every variant is asked all `timed_ids` in one block. Who is first alternates (A B B A A B),
    so that a device that warms up slows both alike, and neighbours of one variant share a process. The order of the
    questions in a round is drawn anew each time, the same for all variants.

    >>> steps = order(["1", "2"], repetitions=5, timed_ids=["1"], variants=["artifact", "base"], seed=0)
    >>> "".join(step.variant[0] for step in steps)
    'aaabbaabbaab'
    """
    if len(set(ids)) != len(ids) or len(set(timed_ids)) != len(timed_ids):
        raise MpaError("two questions of the benchmark have the same id: give each question its own id")
    if not variants or not set(timed_ids) <= set(ids):
        raise MpaError("a question is timed that is not asked: choose the timed ones among the questions")
    if repetitions < LEAST_REPETITIONS:
        raise MpaError(f"{repetitions} repetitions are too few for an interval: use {LEAST_REPETITIONS} or more")
    steps = [Step(variants[0], each, 0) for each in ids]
    for turn in range(1, repetitions + 1):
        asked = list(timed_ids)
        random.Random(f"{seed}/{turn}").shuffle(asked)
        for variant in variants if turn % 2 else reversed(variants):
            steps += [Step(variant, each, turn) for each in asked]
    return tuple(steps)


def drift(samples: Sequence[float]) -> float:
    """How much slower (positive) or faster the second half of a run is, as a share of the first half's median.

    Samples in the order they were taken. 0.0 where the change is within noise: below 3 %, or where the 95 % bootstrap
    interval of the difference holds 0.

    >>> drift([1.0, 1.01, 0.99, 1.0, 1.3, 1.31, 1.29, 1.3])
    0.3
    >>> drift([1.0, 1.2, 0.8, 1.1, 1.0, 0.9, 1.2, 1.0])
    0.0
    """
    half = len(samples) // 2
    if half < 3:
        return 0.0
    before, after = list(samples[:half]), list(samples[-half:])
    first = float(np.median(before))
    share = (float(np.median(after)) - first) / first if first > 0 else 0.0
    low, high = np.percentile(medians(after, seed=1) - medians(before, seed=2), [2.5, 97.5])
    return round(share, 4) if (low > 0 or high < 0) and abs(share) > DRIFT_SHARE else 0.0


def over_question_medians(rows: Sequence[Timed], metric: str) -> list[float]:
    """Samples of a metric in the order of `rows`, each over its own question's median: what `drift` can compare.

    Questions differ in length; a question that came late must not look like a slow device.
    """
    samples = [(row.id, row.values[metric]) for row in rows if metric in row.values]
    of: dict[str, list[float]] = {}
    for question, value in samples:
        of.setdefault(question, []).append(value)
    middle = {question: float(np.median(values)) for question, values in of.items()}
    return [value / middle[question] for question, value in samples if middle[question] > 0]
