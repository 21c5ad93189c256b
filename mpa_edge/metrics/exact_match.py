"""Exact match: the metric of the built-in task, whose answers have one form.

>>> score(" Red", ["red"]), score("Red.", ["red"]), score("Red.", ["red"], lenient=True)
(1.0, 0.0, 1.0)
"""

from __future__ import annotations

from collections.abc import Sequence

from mpa_edge.metrics.lenient import checked, unquoted

REFERENCE = "this project: equal after strip and casefold"


def _strict(text: str) -> str:
    return text.strip().casefold()


def _lenient(text: str) -> str:
    """As strict, less trailing stops and wrapping quotes."""
    text = _strict(text)
    while (peeled := unquoted(text.rstrip(" .")).strip()) != text:
        text = peeled
    return text


def score(prediction: str, answers: Sequence[str], *, lenient: bool = False) -> float:
    """1.0 where the prediction equals an answer, else 0.0. MpaError without answers.

    Lenient also ignores trailing stops and wrapping quotes; a label of which nothing is left then matches nothing.

    >>> score('"4"', ["4"], lenient=True), score("no", ["not"], lenient=True), score(".", ["."], lenient=True)
    (1.0, 0.0, 0.0)
    """
    if not lenient:
        return float(_strict(prediction) in {_strict(answer) for answer in checked(answers)})
    label = _lenient(prediction)
    return float(label != "" and label in {_lenient(answer) for answer in checked(answers)})
