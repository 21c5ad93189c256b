"""Score predictions against answers, as the benchmarks' reference files do."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from mpa_edge.cli._options import METRIC, json_option, print_json, verbose_option
from mpa_edge.errors import MpaError
from mpa_edge.metrics import cautions, get_metric
from mpa_edge.metrics.rows import parse_rows, score_rows


def content_of(path: str) -> bytes:
    """A file, or stdin where the path is `-`."""
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise MpaError(f"{path}: {error.strerror}: give a JSON lines file, or - for stdin") from None


@click.command("score")
@click.argument("file", metavar="FILE.jsonl")
@click.option("--metric", "name", type=METRIC, required=True, help="How to score: anls, number:unit=bar, ...")
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
    rows = list(parse_rows(content_of(file), source))
    report = score_rows(metric, rows, source, lenient=lenient)
    for line in cautions(name, [row.answers for row in rows]):
        click.echo(f"{source}: {line}", err=True)
    if as_json:
        return print_json({key: value for key, value in dataclasses.asdict(report).items() if value is not None})
    from rich.console import Console
    from rich.table import Table

    right, wrong = report.scores.count(1.0), report.scores.count(0.0)
    table = Table(title=f"{metric.title}, lenient" if lenient else metric.title)
    for column in ("metric", "rows", "value", "1", "between", "0"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    counts = (right, report.n - right - wrong, wrong)
    table.add_row(report.metric, str(report.n), f"{100 * report.value:.2f} %", *map(str, counts))
    Console().print(table)
    if report.unparsable:
        click.echo(f"in another form, which scores 0: {report.unparsable}")
    return None
