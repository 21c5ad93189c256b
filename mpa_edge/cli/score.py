"""Score predictions against answers, as the benchmarks' reference files do."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import click

from mpa_edge.cli._options import json_option, print_json, verbose_option
from mpa_edge.errors import MpaError
from mpa_edge.metrics import METRICS, get_metric
from mpa_edge.metrics.rows import parse_rows, score_rows


def lines_of(path: str) -> Iterator[bytes]:
    """Lines of a file, or of stdin where the path is `-`."""
    if path == "-":
        yield from sys.stdin.buffer
        return
    try:
        with open(path, "rb") as file:
            yield from file
    except OSError as error:
        raise MpaError(f"{path}: {error.strerror}: give a JSON lines file, or - for stdin") from None


@click.command("score")
@click.argument("file", metavar="FILE.jsonl")
@click.option("--metric", "name", type=click.Choice(list(METRICS)), required=True, help="How to score.")
@click.option("--lenient", is_flag=True, help="Ignore case, final stops, quotes, $, %, articles. Not the reference.")
@json_option
@verbose_option
def command(file: str, name: str, lenient: bool, as_json: bool) -> None:
    """Score the predictions in FILE.jsonl (- is stdin), one row a line:

    {"answers": ["5", "five"], "prediction": "5"}

    The strict score equals the reference file of the benchmark on every input. A row with one answer may say
    "answer": "5". The value is the mean of the scores, from 0 to 1.

    \b
    Examples:
      $ mpa-edge score --metric relaxed-accuracy predictions.jsonl
      $ mpa-edge score --metric vqa-accuracy --lenient predictions.jsonl --json
      $ cat predictions.jsonl | mpa-edge score --metric anls - --json
    """
    source = "<stdin>" if file == "-" else file
    metric = get_metric(name)
    report = score_rows(metric, parse_rows(lines_of(file), source), source, lenient=lenient)
    if as_json:
        return print_json(dataclasses.asdict(report))
    from rich.console import Console
    from rich.table import Table

    right, wrong = report.scores.count(1.0), report.scores.count(0.0)
    table = Table(title=f"{metric.title}, lenient" if lenient else metric.title)
    for column in ("metric", "rows", "value", "1", "between", "0"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    counts = (right, report.n - right - wrong, wrong)
    table.add_row(report.metric, str(report.n), f"{100 * report.value:.2f} %", *map(str, counts))
    return Console().print(table)
