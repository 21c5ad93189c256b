"""The benchmarks of a run as one HTML file, or two runs held against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpa_edge.cli._options import json_option, print_json, verbose_option
from mpa_edge.cli._remote import fetched
from mpa_edge.errors import MpaError, VerificationError
from mpa_edge.runs.files import write_bytes

if TYPE_CHECKING:
    from mpa_edge.bench.report import BenchData, Comparison

REPORT = "report.html"


@dataclass(frozen=True)
class Found:
    """What there is to report."""

    benches: list[BenchData]
    """Shown in full: of two runs that were compared, those of the newer one."""
    comparisons: list[Comparison]
    """Of two runs."""
    alone: list[str]
    """Benchmarks of two runs without a counterpart, in words."""

    @property
    def worse(self) -> int:
        """Number of regressions."""
        return sum(len(one.regressions) for one in self.comparisons)


def find(runs: tuple[str, ...]) -> Found:
    """Read all benchmarks; two runs are compared."""
    from mpa_edge.bench.report import compare_all, find_benches, read_bench

    sides = [[read_bench(folder) for folder in find_benches(Path(run))] for run in runs]
    comparisons, alone = compare_all(*sides) if len(sides) == 2 else ([], [])
    shown = sides[1] if comparisons else [data for side in sides for data in side]
    return Found(shown, comparisons, alone)


def write(found: Found, path: Path) -> None:
    """The HTML file. MpaError where it cannot be written."""
    from mpa_edge.bench.report import render_html

    try:
        write_bytes(path, render_html(found.benches, found.comparisons, found.alone).encode())
    except OSError as error:
        raise MpaError(f"cannot write {path} ({error.strerror}): choose another --out") from error


def say(found: Found, path: Path) -> None:
    """Verdicts, what changed, and where the file is."""
    from mpa_edge.bench.report import render_comparison, verdict_line

    for data in found.benches:
        click.echo(verdict_line(data))
    for comparison in found.comparisons:
        click.echo(f"\n{render_comparison(comparison)}")
    for line in found.alone:
        click.echo(line)
    click.echo(str(path))


def show(found: Found, path: Path, markdown: bool, as_json: bool) -> None:
    """What goes to stdout."""
    from mpa_edge.bench.report import render_markdown, report_document

    everything = (found.benches, found.comparisons, found.alone)
    if as_json:
        print_json(report_document(*everything))
    elif markdown:
        click.echo(render_markdown(*everything), nl=False)
    else:
        say(found, path)


@click.command("report")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--out", metavar="FILE", help="Where to write the HTML; else RUN/report.html.")
@click.option("--markdown", is_flag=True, help="Print Markdown; HTML is written only to --out.")
@json_option
@click.option("--fail-on-regression", is_flag=True, help="Exit 3 where the second run is worse beyond noise.")
@verbose_option
@fetched("runs")
def command(runs: tuple[str, ...], out: str | None, markdown: bool, as_json: bool, fail_on_regression: bool) -> None:
    """Show what the benchmarks of RUN found: one HTML file that needs no network and runs no script.

    RUN is a run folder, or one benchmark inside it. With two, the second is held against the first: medians whose
    intervals are apart and more than 5 % off, accuracy on the questions that both were asked. With --json or --markdown
    the HTML is written only where --out says so.

    \b
    Examples:
      $ mpa-edge report runs/mine
      $ mpa-edge report runs/mine --markdown
      $ mpa-edge report runs/mine runs/newer --fail-on-regression
    """
    if markdown and as_json:
        raise click.UsageError("--markdown and --json exclude each other")
    if fail_on_regression and len(runs) != 2:
        raise click.UsageError("--fail-on-regression compares two runs: give the older one, then the newer one")
    found = find(runs)
    if fail_on_regression and not found.comparisons:
        raise MpaError(f"{runs[0]} and {runs[1]} have no target and scheme in common: benchmark the same ones in both")
    path = Path(out or Path(runs[-1]) / REPORT)
    if out or not (markdown or as_json):
        write(found, path)
    show(found, path, markdown, as_json)
    if fail_on_regression and found.worse:
        raise VerificationError(f"{runs[1]} is worse than {runs[0]} in {found.worse} ways: see what is marked above")
