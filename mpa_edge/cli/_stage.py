"""What the align command and the commands of its stages share: arguments, the plan, the result on screen."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from mpa_edge.cli._options import is_verbose, print_json, run_options
from mpa_edge.cli._remote import both_here, work_option

if TYPE_CHECKING:
    from mpa_edge.engines.job import Engine
    from mpa_edge.stages.level.processes import Processes
    from mpa_edge.stages.run import Run
    from mpa_edge.types import AlignReport


RUN_HELP = "Run folder, or its URL (s3://BUCKET/FOLDER).  [default: runs/NAME of the recipe]"


def stage_arguments(
    function: Callable[..., Any], source: str = "[RECIPE|RUN]", out: str = "RUN", out_help: str = RUN_HELP
) -> Callable[..., Any]:
    """SOURCE, --images, --out and the shared flags."""
    options = (
        click.argument("source", required=False, metavar=source),
        click.option("--images", type=click.Path(), metavar="DIR", help="Folder of unlabelled images."),
        click.option("--out", type=click.Path(), metavar=out, help=out_help),
        work_option,
    )
    for option in reversed(options):
        function = option(function)
    return run_options(function)


def run_named_stages(
    names: tuple[str, ...], source: str | None, out: str | None, dry_run: bool, **arguments: Any
) -> None:
    """Run the stages in a run folder, or in the working copy of one behind a URL."""
    with both_here(source, out, dry_run) as (local, local_out):
        _run_here(names, source=local, out=local_out, dry_run=dry_run, **arguments)


def _run_here(
    names: tuple[str, ...],
    source: str | None,
    images: str | None,
    out: str | None,
    overrides: tuple[str, ...],
    limit: int | None,
    dry_run: bool,
    fresh: bool,
    as_json: bool,
    engine: Engine | None = None,
    processes: Processes | None = None,
) -> None:
    """Open the run, run the stages or print the plan, print what came of it."""
    from mpa_edge.stages.level.launch import join
    from mpa_edge.stages.pipeline import report, run_stages
    from mpa_edge.stages.plan import plan, preflight
    from mpa_edge.stages.run import open_run

    run = open_run(source, images=images, out=out, overrides=overrides, limit=limit)
    run = replace(run, engine=engine) if engine else run
    run = replace(run, processes=processes)
    if dry_run:
        preflight(run, names)
        show_plan(plan(run), names, as_json)
        return
    with suppress_library_output(is_verbose()):
        if processes and processes.machine:
            join(run, names)
        else:
            run_stages(run, names, fresh)
    result = report(run)
    if as_json:
        print_json(result)
    else:
        show_result(run, result)


@contextmanager
def suppress_library_output(verbose: bool) -> Iterator[None]:
    """Nothing of the libraries on stdout, and their notices on stderr only with -v."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        level = logging.root.manager.disable
        if not verbose:
            # the variable is for what starts a process of its own, or loads a fresh set of filters
            os.environ.setdefault("PYTHONWARNINGS", "ignore")
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


def show_plan(planned: dict[str, Any], names: tuple[str, ...], as_json: bool) -> None:
    """The plan of `--dry-run`, only the stages that were asked for."""
    planned = planned | {"stages": {name: planned["stages"][name] for name in names}}
    if as_json:
        print_json(planned)
        return
    for key in ("run", "recipe", "task", "teacher", "student", "device", "images"):
        click.echo(f"{key:9} {planned[key]}")
    for name, what in planned["stages"].items():
        state = " (finished before)" if name in planned["done"] else ""
        click.echo(f"  {name:9} {what}{state}")
    click.echo(f"disk      about {planned['disk_bytes'] / 1e6:,.0f} MB")
    memory = planned["memory_bytes"]
    click.echo(
        f"memory    about {memory / 1e9:,.1f} GB" if memory else "memory    not known before the models are here"
    )


def so_far(result: AlignReport, asked: bool) -> str:
    """How far a run is that was not evaluated; what the student was not asked yet is not shown as zero."""
    verdicts = f", {result.verified} verified, {result.gap} gap" if asked else ""
    return f"{result.annotated} annotated{verdicts}"


def show_result(run: Run, result: AlignReport) -> None:
    """Tables of a finished run, or how far it is."""
    from mpa_edge.runs.files import read_json
    from mpa_edge.stages.teacher import total_usage, usage_line

    if (used := total_usage(run)) is not None:
        click.echo(usage_line(used))
    details = read_json(run.stage_folder("evaluate") / "evaluate.json")
    if result.accuracy is None or details is None:
        return click.echo(f"{run.folder}: {so_far(result, asked=run.finished('identify'))}")
    for line in accuracy_lines(details):
        click.echo(line)
    return click.echo(f"aligned model: {run.stage_folder('merge')}")


def accuracy_lines(details: dict[str, Any]) -> Iterator[str]:
    """The table of the three models, and the gain in a sentence."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{details['n']} held-out questions, {details['metric']}")
    for heading in ("", "teacher", "base", "aligned"):
        table.add_column(heading, justify="right" if heading else "left")
    models = ("teacher", "base", "aligned")
    table.add_row("all", *(f"{details['accuracy'][m]:.1%}" for m in models), style="bold")
    table.add_row("95 % interval", *("{:.1%} – {:.1%}".format(*details["ci95"][m]) for m in models))
    for kind, row in details["kinds"].items():
        table.add_row(f"{kind} ({row['n']:.0f})", *(f"{row[m]:.0%}" for m in models))
    console = Console()
    with console.capture() as captured:
        console.print(table)
    yield captured.get().rstrip("\n")
    (low, high), changed = details["gain_ci95"], details["flips"]
    # not through rich: it would break the line at 80 columns where nobody looks at a terminal
    yield (
        f"gain {100 * details['gain']:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f}), "
        f"McNemar p = {details['p_mcnemar']:.2g}, {changed['gained']} questions gained, {changed['lost']} lost"
    )
