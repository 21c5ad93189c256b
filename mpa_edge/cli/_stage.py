"""What align and the commands of its stages share: options, the printed plan, the printed result."""

from __future__ import annotations

import contextlib
import functools
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
from mpa_edge.errors import MpaError
from mpa_edge.stages.level.ddp import broadcast, rank, require_launchable

if TYPE_CHECKING:
    from mpa_edge.engines.job import Engine
    from mpa_edge.stages.run import Run
    from mpa_edge.types import AlignReport


RUN_HELP = "Run folder, or its URL (s3://BUCKET/FOLDER).  [default: runs/NAME of the recipe]"


def stage_arguments(
    function: Callable[..., Any], source: str = "[RECIPE|RUN]", out: str = "RUN", out_help: str = RUN_HELP
) -> Callable[..., Any]:
    """SOURCE, --images, --out, --work and the options that all commands share."""
    options = (
        click.argument("source", required=False, metavar=source),
        click.option("--images", type=click.Path(), metavar="DIR", help="Folder of unlabelled images."),
        click.option("--out", type=click.Path(), metavar=out, help=out_help),
        work_option,
    )
    for option in reversed(options):
        function = option(function)
    return run_options(function)


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--engine and --ray-address, as one `engine` for the function."""

    @click.option(
        "--engine",
        "name",
        type=click.Choice(["local", "ray"]),
        default="local",
        help="Where the models run: in this process, or in the actors of a Ray cluster.",
    )
    @click.option(
        "--ray-address",
        "address",
        metavar="ADDRESS",
        help="Ray cluster: auto (the one on this machine), HOST:PORT or ray://HOST:PORT.  [default: start one here]",
    )
    @functools.wraps(function)
    def with_engine(name: Any, address: str | None, **arguments: Any) -> Any:
        from mpa_edge.engines.job import Engine

        if address is not None and name != "ray":
            raise click.UsageError("--ray-address is for --engine ray: give both")
        return function(engine=Engine(name, address), **arguments)

    return with_engine


def run_named_stages(
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
    after: Callable[[Run], None] | None = None,
) -> None:
    """Run the named stages and print the result, or print the plan. A run behind a URL works in its local copy.

    `after` is called in the end, also where a stage found nothing that it can use. Of several processes that
    `accelerate launch` started, only the first one does this; the others train along.
    """
    from mpa_edge.stages.pipeline import report, run_stages
    from mpa_edge.stages.preflight import preflight, summary
    from mpa_edge.stages.run import open_run

    if rank() > 0:
        if names != ("level",):
            raise click.exceptions.Exit(1)  # the first process prints why
        from mpa_edge.stages.level.training import follow

        with suppress_library_output(is_verbose()):
            follow()
        return
    with both_here(source, out, dry_run) as (local, local_out):
        run = open_run(local, images=images, out=local_out, overrides=overrides, limit=limit)
        run = replace(run, engine=engine) if engine else run
        require_launchable(names, run.recipe.level)
        if dry_run:
            preflight(run, names)
            show_plan(summary(run), names, as_json)
        else:
            try:
                with suppress_library_output(is_verbose()):
                    run_stages(run, names, fresh)
            except MpaError:
                if after:
                    after(run)
                raise
            result = report(run)
            if as_json:
                print_json(result)
            else:
                show_result(run, result)
            if after:
                after(run)
    broadcast(None)


@contextmanager
def suppress_library_output(verbose: bool) -> Iterator[None]:
    """Keep what libraries print off stdout, and their warnings off stderr unless -v was given."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        level = logging.root.manager.disable
        if not verbose:
            # the variables are for child processes, and for libraries that reset the filters
            os.environ.setdefault("PYTHONWARNINGS", "ignore")
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


def show_plan(planned: dict[str, Any], names: tuple[str, ...], as_json: bool) -> None:
    """Print the plan of `--dry-run` for the named stages."""
    planned = planned | {"stages": {name: planned["stages"][name] for name in names}}
    if as_json:
        print_json(planned)
        return
    for key in ("run", "recipe", "task", "teacher", "student", "device", "images"):
        click.echo(f"{key:9} {planned[key]}")
    for name, what in planned["stages"].items():
        state = " (finished before)" if name in planned["done"] else ""
        click.echo(f"  {name:9} {what}{state}")
    disk, memory = planned["disk_bytes"], planned["memory_bytes"]
    click.echo(f"disk      about {disk / 1e6:,.0f} MB" if disk else "disk      unknown until the models are downloaded")
    click.echo(f"memory    about {memory / 1e9:,.1f} GB" if memory else "memory    see mpa-edge plan RECIPE")


def so_far(result: AlignReport, asked: bool) -> str:
    """Counts of a run that was not evaluated; before identify (`asked`) there are no verdicts to show."""
    verdicts = f", {result.verified} verified, {result.gap} gap" if asked else ""
    return f"{result.annotated} annotated{verdicts}"


def show_result(run: Run, result: AlignReport) -> None:
    """Print the accuracy of a finished run, or the counts of an unfinished one."""
    from mpa_edge.stages.evaluate import result_of
    from mpa_edge.stages.teacher import total_usage, usage_line

    if (used := total_usage(run)) is not None:
        click.echo(usage_line(used))
    details = result_of(run)
    if result.accuracy is None or details is None:
        return click.echo(f"{run.folder}: {so_far(result, asked=run.finished('identify'))}")
    for line in accuracy_lines(details):
        click.echo(line)
    return click.echo(f"aligned model: {run.stage_folder('merge')}")


def accuracy_lines(details: dict[str, Any]) -> Iterator[str]:
    """The table of the three models, and one line about the gain."""
    from rich.console import Console
    from rich.table import Table

    from mpa_edge.questions import measure_of
    from mpa_edge.questions.own import SILVER_NOTE

    truth = details.get("truth", "labels")
    models = tuple(name for name in ("teacher", "base", "aligned") if name in details["accuracy"])
    what = f"{measure_of(truth)}, " if truth != "labels" else ""
    of_which = f", {details['n_reviewed']} of them reviewed" if truth == "reviewed" else ""
    table = Table(title=f"{what}{details['n']} held-out questions{of_which}, {details['metric'].partition(':')[0]}")
    for heading in ("", *models):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("all", *(f"{details['accuracy'][m]:.1%}" for m in models), style="bold")
    table.add_row("95 % interval", *("{:.1%} – {:.1%}".format(*details["ci95"][m]) for m in models))
    if wrong := details.get("unparsable"):
        table.add_row("answers in another form", *(str(wrong.get(m, "")) for m in models))
    if truth == "reviewed":
        table.add_row("agreement with the teacher", "", *(f"{share:.1%}" for share in details["agreement"].values()))
    for kind, row in details["kinds"].items() if truth != "reviewed" else ():
        table.add_row(f"{kind} ({row['n']:.0f})", *(f"{row[m]:.0%}" for m in models))
    console = Console()
    with console.capture() as captured:
        console.print(table)
    yield captured.get().rstrip("\n")
    if truth == "teacher":
        yield f"{SILVER_NOTE}; mpa-edge review makes it an accuracy"
    yield from details.get("quality", ())
    (low, high), changed = details["gain_ci95"], details["flips"]
    if truth == "reviewed":
        basis = f"{details['method']}, {details['n_reviewed']} reviewed questions"
    else:
        basis = f"McNemar p = {details['p_mcnemar']:.2g}, {changed['gained']} questions gained, {changed['lost']} lost"
    # not printed with rich, which breaks lines at 80 columns when the output is no terminal
    yield (f"gain {100 * details['gain']:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f}), {basis}")
