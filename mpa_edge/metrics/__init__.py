"""Metrics. The strict mode equals the reference file of a benchmark; the lenient mode is our own and always named so.

Every metric is a plain function `score(prediction, answers, *, lenient=False) -> float` in [0, 1].
Strict scores are what papers report. Lenient ones decide whether two models agree, and explain errors; the two are
never put into one table.

>>> METRICS["vqa-accuracy"].score("2", ["two"] * 3 + ["4"] * 7)
0.9
>>> METRICS["relaxed-accuracy"].agrees("$50.", "50%")
True
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mpa_edge.errors import MpaError, did_you_mean
from mpa_edge.metrics import anls, exact_match, relaxed_accuracy, vqa_accuracy


class Score(Protocol):
    """Scores one prediction against every accepted answer."""

    def __call__(self, prediction: str, answers: Sequence[str], *, lenient: bool = False) -> float:
        """0 to 1."""
        ...


@dataclass(frozen=True)
class Metric:
    """A metric by name."""

    name: str
    """Its name in tasks and in `mpa-edge score --metric`."""
    title: str
    """Its name in tables."""
    score: Score
    """One prediction against its answers, 0 to 1."""
    reference: str
    """Source of the strict mode, with the commit."""

    def agrees(self, prediction: str, answer: str) -> bool:
        """Whether two short answers say the same: the lenient score of one against the other is not 0."""
        return self.score(prediction, [answer], lenient=True) > 0


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("vqa-accuracy", "VQA accuracy", vqa_accuracy.score, vqa_accuracy.REFERENCE),
        Metric("anls", "ANLS", anls.score, anls.REFERENCE),
        Metric("relaxed-accuracy", "Relaxed accuracy", relaxed_accuracy.score, relaxed_accuracy.REFERENCE),
        Metric("exact-match", "Exact match", exact_match.score, exact_match.REFERENCE),
    )
}


def cautions(name: str, answers: Iterable[Sequence[str]]) -> list[str]:
    """What a reader of a metric's scores must know about the accepted answers of the questions.

    >>> cautions("vqa-accuracy", [["5"], ["5"] * 10])
    ['1 of 2 questions have fewer than three answers, ... use another metric']
    >>> cautions("anls", [["5"], [""]]), cautions("anls", [["5"]])
    (['1 of 2 questions accept an empty answer, which makes silence right: leave them out'], [])
    """
    listed = list(answers)
    few = sum(len(one) < vqa_accuracy.FULL_MATCHES for one in listed) if name == "vqa-accuracy" else 0
    empty = sum(not all(answer.strip() for answer in one) for one in listed)
    found = {
        "have fewer than three answers, for which vqa-accuracy gives a right one 0 (one answer) or 33 % (two), as its "
        "reference does: give ten answers, or use another metric": few,
        "accept an empty answer, which makes silence right: leave them out": empty,
    }
    return [f"{n} of {len(listed)} questions {what}" for what, n in found.items() if n]


def get_metric(name: str) -> Metric:
    """The metric of that name; MpaError naming the nearest one where there is none.

    >>> get_metric("anls").title
    'ANLS'
    >>> get_metric("anlss")
    Traceback (most recent call last):
    ...
    mpa_edge.errors.MpaError: no metric 'anlss': did you mean 'anls'?
    """
    if name not in METRICS:
        raise MpaError(f"no metric '{name}': " + did_you_mean(name, METRICS, f"use {', '.join(METRICS)}"))
    return METRICS[name]
