"""The benchmarks of a run as one HTML file, or two runs compared."""

from __future__ import annotations

from pathlib import Path

import click

from mpa_edge.cli._options import echo, json_option, print_json, verbose_option
from mpa_edge.cli._remote import fetched
from mpa_edge.errors import MpaError, VerificationError
from mpa_edge.runs.files import write_bytes


@click.command("report")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--out", metavar="FILE", help="Where to write the HTML.  [default: RUN/report.html]")
@json_option
@click.option("--fail-on-regression", is_flag=True, help="Exit with 3 where the second run is worse beyond noise.")
@verbose_option
@fetched("runs")
def command(runs: tuple[str, ...], out: str | None, as_json: bool, fail_on_regression: bool) -> None:
    """Show what the benchmarks of RUN found: one HTML file that needs no network and runs no script.

    RUN is a run folder, or one benchmark inside it. With two, the second is compared with the first: medians whose
    intervals are apart and more than 5 % off, accuracy on the questions that both were asked. With --json the HTML is
    written only with --out.

    \b
    Examples:
      $ mpa-edge report runs/mine
      $ mpa-edge report runs/mine runs/newer --fail-on-regression
    """
    if fail_on_regression and len(runs) != 2:
        raise click.UsageError("--fail-on-regression compares two runs: give the older one, then the newer one")
    from mpa_edge.bench.report.compare import compare_all, report_document
    from mpa_edge.bench.report.read import find_benches, read_bench
    from mpa_edge.bench.report.table import render_comparison, verdict_line

    sides = [[read_bench(folder) for folder in find_benches(Path(run))] for run in runs]
    comparisons, alone = compare_all(*sides) if len(sides) == 2 else ([], [])
    if fail_on_regression and not comparisons:
        raise MpaError(f"{runs[0]} and {runs[1]} have no target and scheme in common: benchmark the same ones in both")
    # of two runs that were compared, only the newer one is shown in full
    found = (sides[1] if comparisons else [data for side in sides for data in side], comparisons, alone)
    path = Path(out or Path(runs[-1]) / "report.html")
    if out or not as_json:
        from mpa_edge.bench.report.html import render_html

        try:
            write_bytes(path, render_html(*found).encode())
        except OSError as error:
            raise MpaError(f"cannot write {path} ({error.strerror}): choose another --out") from error
    if as_json:
        print_json(report_document(*found))
    else:
        lines = [verdict_line(data) for data in found[0]]
        lines += [f"\n{render_comparison(comparison)}" for comparison in comparisons]
        echo("\n".join([*lines, *alone, str(path)]))
    worse = sum(len(one.regressions) for one in comparisons)
    if fail_on_regression and worse:
        raise VerificationError(f"{runs[1]} is worse than {runs[0]} in {worse} ways: see what is marked above")
