"""The rows of a predictions file, and their score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mpa_edge.errors import MpaError
from mpa_edge.metrics import Metric, unparsable
from mpa_edge.metrics.paired import mean
from mpa_edge.metrics.reading import answers_of, json_lines, text_of

EXAMPLE = '{"answers": ["5"], "prediction": "5"}'


@dataclass(frozen=True)
class Row:
    """One prediction with every accepted answer."""

    prediction: str
    """What a model said."""
    answers: tuple[str, ...]
    """At least one."""


@dataclass(frozen=True)
class ScoreReport:
    """What `mpa-edge score --json` prints."""

    metric: str
    """Name of the metric, with "-lenient" where it is not the reference's."""
    n: int
    """Number of rows."""
    value: float
    """Mean of the scores, 0 to 1."""
    scores: tuple[float, ...]
    """Score of each row, 0 to 1, not rounded, in the order of the file."""
    unparsable: int | None = None
    """Predictions that are not of the metric's form; None where any text is."""


def parse_rows(data: bytes, name: str) -> Iterator[Row]:
    """The rows of a predictions file; other keys are ignored. MpaError that names file and line and ends with the fix.

    >>> list(parse_rows(b'{"answers": ["a", "b"], "prediction": "b", "id": 7}', "x.jsonl"))
    [Row(prediction='b', answers=('a', 'b'))]
    >>> list(parse_rows(b'{"answer": "a", "prediction": null}', "x"))
    Traceback (most recent call last):
    ...
    mpa_edge.errors.MpaError: x:1: prediction is null: write it as text, as in {"answers": ["5"], "prediction": "5"}
    """
    for number, row in json_lines(data, name, EXAMPLE):
        where = f"{name}:{number}"
        if "prediction" not in row:
            raise MpaError(f"{where}: no prediction: write one, as in {EXAMPLE}")
        prediction = text_of(row["prediction"], "prediction", where, EXAMPLE)
        answers = row.get("answers", row.get("answer"))
        if "answers" not in row and isinstance(answers, str):
            answers = [answers]
        if not (accepted := answers_of(answers, where, EXAMPLE)):
            raise MpaError(f"{where}: answers is empty: give at least one accepted answer, or leave the row out")
        yield Row(prediction, accepted)


def score_rows(metric: Metric, rows: Iterable[Row], name: str, *, lenient: bool = False) -> ScoreReport:
    """Score every row. MpaError where there is none.

    >>> from mpa_edge.metrics import get_metric
    >>> score_rows(get_metric("exact-match"), [Row("a", ("a",)), Row("b", ("c",))], "x.jsonl")
    ScoreReport(metric='exact-match', n=2, value=0.5, scores=(1.0, 0.0), unparsable=None)
    """
    rows = list(rows)
    scores = tuple(metric.score(row.prediction, row.answers, lenient=lenient) for row in rows)
    if not scores:
        raise MpaError(f"{name}: no rows: write one a line, as in {EXAMPLE}")
    name = f"{metric.name}-lenient" if lenient else metric.name
    return ScoreReport(name, len(scores), mean(scores), scores, unparsable(metric, [row.prediction for row in rows]))
