"""The rows of a predictions file, and their score."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mpa_edge.errors import MpaError
from mpa_edge.metrics import Metric
from mpa_edge.metrics.paired import mean

EXAMPLE = '{"answers": ["5"], "prediction": "5"}'
JSON_TYPES = {
    type(None): "null",
    str: "text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


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


def parse_row(line: bytes, where: str) -> Row:
    """One line of a predictions file; other keys are ignored. MpaError that begins with `where` and ends with the fix.

    >>> parse_row(b'{"answers": ["a", "b"], "prediction": "b", "id": 7}', "x.jsonl:1")
    Row(prediction='b', answers=('a', 'b'))
    >>> parse_row(b'{"answer": "a", "prediction": null}', "x:2")
    Traceback (most recent call last):
    ...
    mpa_edge.errors.MpaError: x:2: prediction is null: write it as text, as in {"answers": ["5"], "prediction": "5"}
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise MpaError(f"{where}: not UTF-8 (byte {error.start + 1}): save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise MpaError(f"{where}: not JSON ({error}): write one row a line, as in {EXAMPLE}") from None
    if not isinstance(row, dict):
        raise MpaError(f"{where}: the line is {JSON_TYPES[type(row)]}: write one object a line, as in {EXAMPLE}")
    if "prediction" not in row:
        raise MpaError(f"{where}: no prediction: write one, as in {EXAMPLE}")
    prediction = row["prediction"]
    if not isinstance(prediction, str):
        raise MpaError(f"{where}: prediction is {JSON_TYPES[type(prediction)]}: write it as text, as in {EXAMPLE}")
    answers = row.get("answers", row.get("answer"))
    if "answers" not in row and isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list):
        raise MpaError(f"{where}: answers is {JSON_TYPES[type(answers)]}: write a list of texts, as in {EXAMPLE}")
    if not answers:
        raise MpaError(f"{where}: answers is empty: give at least one accepted answer, or leave the row out")
    for answer in answers:
        if not isinstance(answer, str):
            raise MpaError(
                f"{where}: one of the answers is {JSON_TYPES[type(answer)]}: write it as text, as in {EXAMPLE}"
            )
    return Row(prediction, tuple(answers))


def parse_rows(lines: Iterable[bytes], name: str) -> Iterator[Row]:
    """The rows of a JSON lines file; blank lines are skipped. MpaError naming file and line."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield parse_row(line, f"{name}:{number}")


def score_rows(metric: Metric, rows: Iterable[Row], name: str, *, lenient: bool = False) -> ScoreReport:
    """Score every row. MpaError where there is none.

    >>> from mpa_edge.metrics import get_metric
    >>> score_rows(get_metric("exact-match"), [Row("a", ("a",)), Row("b", ("c",))], "x.jsonl")
    ScoreReport(metric='exact-match', n=2, value=0.5, scores=(1.0, 0.0))
    """
    scores = tuple(metric.score(row.prediction, row.answers, lenient=lenient) for row in rows)
    if not scores:
        raise MpaError(f"{name}: no rows: write one a line, as in {EXAMPLE}")
    name = f"{metric.name}-lenient" if lenient else metric.name
    return ScoreReport(name, len(scores), mean(scores), scores)
