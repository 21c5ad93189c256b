"""Relaxed accuracy: the metric of ChartQA.

Source: `relaxed_correctness` of https://github.com/google-research/pix2struct pix2struct/metrics.py at commit
945f27e936c9464d9d7c133f1bd1f4f383be9e99. Its oddities are kept: numbers are what Python's `float` takes ("5." and
" 5" are, "$5" and "1,000" are not); a trailing % divides by 100, so "50%" equals "0.5" and not "50"; a target of 0 is
compared as text; "inf" and "nan" are wrong even against themselves; a year may be 5 % off.

>>> score("104", ["100"]), score("106", ["100"]), score("Yes", ["yes"]), score("2000", ["1990"])
(1.0, 0.0, 1.0, 1.0)
>>> score("$5", ["5"]), score("50%", ["0.5"]), score("0.0", ["0"]), score("inf", ["inf"])
(0.0, 1.0, 0.0, 0.0)
"""

from __future__ import annotations

from collections.abc import Sequence

from mpa_edge.metrics.lenient import checked, normalized, number

REFERENCE = "google-research/pix2struct@945f27e pix2struct/metrics.py"
TOLERANCE = 0.05
FIRST_YEAR, LAST_YEAR = 1500, 2100


def _to_float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _within(value: float, target: float) -> bool:
    """Whether value is within 5 % of target, which is not 0; written as in the reference, so that edges round alike."""
    return abs(value - target) / abs(target) <= TOLERANCE


def _strict(prediction: str, answer: str) -> bool:
    value, target = _to_float(prediction), _to_float(answer)
    if value is not None and target:
        return _within(value, target)
    return prediction.lower() == answer.lower()


def _is_year(value: float) -> bool:
    return value.is_integer() and FIRST_YEAR <= value <= LAST_YEAR


def _lenient(prediction: str, answer: str) -> bool:
    left, right = normalized(prediction), normalized(answer)
    value, target = number(left), number(right)
    if value is None or target is None:
        return left != "" and left == right
    if target == 0 or (_is_year(value) and _is_year(target)):
        return value == target
    return _within(value, target)


def score(prediction: str, answers: Sequence[str], *, lenient: bool = False) -> float:
    """1.0 where the prediction is right, else 0.0. MpaError without answers.

    ChartQA has one answer a question; with several, one match is enough (as the reference's `aggregate_metrics`).
    Lenient compares normalized labels (see `lenient.py`): `%`, `$` and thousands commas do not count, integers
    from 1500 to 2100 on both sides are years and must be equal, other numbers may be 5 % off.

    >>> [score(p, [a], lenient=True) for p, a in (("$1,020", "1000"), ("50%", "50"), ("2000", "1990"))]
    [1.0, 1.0, 0.0]
    >>> [score(p, [a], lenient=True) for p, a in (("-5", "5"), ("68", "6.8"), ("%", "%"))]
    [0.0, 0.0, 0.0]
    """
    right = _lenient if lenient else _strict
    return float(any(right(prediction, answer) for answer in checked(answers)))
