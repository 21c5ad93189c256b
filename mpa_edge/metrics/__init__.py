"""Metrics. The strict mode equals the reference file of a benchmark; the lenient mode is our own and always named so.

Every metric is a plain function `score(prediction, answers, *, lenient=False) -> float` in [0, 1]. One for a type of
answer has parameters, which are part of its name: `number:relative=0.05,unit=bar`, `choice:red|green`,
`json:serial=text,pressure=number`.
Strict scores are what papers report. Lenient ones decide whether two models agree, and explain errors; the two are
never put into one table.

>>> METRICS["vqa-accuracy"].score("2", ["two"] * 3 + ["4"] * 7)
0.9
>>> METRICS["relaxed-accuracy"].agrees("$50.", "50%")
True
>>> get_metric("number:relative=0.05,unit=bar").score("3,5bar", ["3.4 bar"])
1.0
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mpa_edge.errors import MpaError, did_you_mean
from mpa_edge.metrics import anls, exact_match, relaxed_accuracy, vqa_accuracy
from mpa_edge.metrics.choice import BETWEEN, Choice
from mpa_edge.metrics.json_fields import FIELD_TYPES, JsonFields
from mpa_edge.metrics.number import Number


class Score(Protocol):
    """Scores one prediction against every accepted answer."""

    def __call__(self, prediction: str, answers: Sequence[str], *, lenient: bool = False) -> float:
        """0 to 1."""
        ...


Form = Number | Choice | JsonFields
"""What an answer must be, where it may not be any text."""


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
    form: Form | None = None
    """What an answer must be; None where it may be any text."""

    def agrees(self, prediction: str, answer: str) -> bool:
        """Whether two short answers say the same: the lenient score of one against the other is not 0.

        Of answers with a form it is 1: an object of which one field is right says something else.
        """
        score = self.score(prediction, [answer], lenient=True)
        return score == 1 if self.form else score > 0


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
    if form := get_metric(name).form:
        other = sum(not any(map(form.canonical, one)) for one in listed)
        found[f"accept an answer that is {form.fault}, for which nothing is right: correct them"] = other
    return [f"{n} of {len(listed)} questions {what}" for what, n in found.items() if n]


def unparsable(metric: Metric, texts: Iterable[str]) -> int | None:
    """How many answers are not of the metric's form, whatever the accepted ones are; None where any text is.

    >>> unparsable(get_metric("json:serial=text"), ['{"serial": "A1"}', "A1"]), unparsable(get_metric("anls"), [""])
    (1, None)
    """
    form = metric.form
    return None if form is None else sum(not form.reads(text) for text in texts)


def without_tolerance(form: Form) -> str:
    """Name of a form without what only matters where two answers are compared.

    >>> without_tolerance(Number(relative=0.05, unit="bar")), without_tolerance(Choice(("on", "off")))
    ('number:unit=bar', 'choice:on|off')
    """
    return form.name if isinstance(form, Choice) else replace(form, relative=0.0, absolute=0.0).name


EXAMPLES = {"number": "number:relative=0.05,unit=bar", "choice": "choice:red|green", "json": "json:serial=text"}


@functools.lru_cache(maxsize=64)
def get_metric(text: str) -> Metric:
    """The metric of that name, with parameters after a colon where it has some.

    MpaError naming the nearest one where there is none, or saying how its parameters are written.

    >>> get_metric("anls").title, get_metric("choice:red|green").score("Red", ["red"])
    ('ANLS', 1.0)
    >>> get_metric("anlss")
    Traceback (most recent call last):
    ...
    mpa_edge.errors.MpaError: no metric 'anlss': did you mean 'anls'?
    >>> get_metric("number:relativ=0.1")
    Traceback (most recent call last):
    ...
    mpa_edge.errors.MpaError: metric 'number:relativ=0.1': no parameter 'relativ': write number:relative=0.05,unit=bar
    """
    name, _, parameters = text.partition(":")
    if text in METRICS:
        return METRICS[text]
    if name not in EXAMPLES:
        known = [*METRICS, *EXAMPLES.values()]
        raise MpaError(f"no metric '{text}': " + did_you_mean(text, [*METRICS, *EXAMPLES], f"use {', '.join(known)}"))
    try:
        form = Choice(_choices(parameters)) if name == "choice" else _with_pairs(name, parameters)
    except ValueError as error:
        raise MpaError(f"metric '{text}': {error}: write {EXAMPLES[name]}") from None
    return Metric(text, form.title, form.score, f"this project: {name}", form)


def _choices(parameters: str) -> tuple[str, ...]:
    choices = tuple(choice.strip() for choice in parameters.split(BETWEEN))
    if len(choices) < 2 or not all(choices):
        raise ValueError("two choices or more are needed")
    return choices


def _with_pairs(name: str, parameters: str) -> Number | JsonFields:
    """The form of `key=value,key=value`. ValueError where a key or a value is unknown."""
    fields, unit, tolerances = list[tuple[str, str]](), "", dict[str, float]()
    for pair in filter(None, parameters.split(",")):
        key, _, value = (part.strip() for part in pair.partition("="))
        if name == "json" and value in FIELD_TYPES:
            fields.append((key, value))
        elif name == "number" and key == "unit":
            unit = value
        elif key in ("relative", "absolute"):
            tolerances[key] = _tolerance(key, value)
        else:
            raise ValueError(f"no parameter '{key}'" if name == "number" else f"field '{key}' has no type")
    if name == "number":
        return Number(unit=unit, **tolerances)
    if not fields or len(dict(fields)) < len(fields):
        raise ValueError("each field once is needed")
    return JsonFields(tuple(fields), **tolerances)


def _tolerance(key: str, value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise ValueError(f"{key} is '{value}', not a number from 0")
    return found
