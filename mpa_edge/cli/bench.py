"""On the device: is the gain still there, and what does an answer cost?"""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpa_edge.bench.measurement import Bench, Reach
from mpa_edge.cli._bench import bench_arguments, open_benches, show_plan, sweep
from mpa_edge.cli._options import (
    dry_run_option,
    echo,
    fresh_option,
    is_verbose,
    json_option,
    print_json,
    verbose_option,
)
from mpa_edge.cli._remote import fetched
from mpa_edge.cli._stage import suppress_library_output

if TYPE_CHECKING:
    from mpa_edge.bench.results.records import Sweep

EXIT_LOST = 3
TIME = re.compile(r"([1-9][0-9]{0,4})([smh])")
MOST_SOAK_S = 8 * 3600.0


def seconds_of(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """The seconds of a text such as 30m. BadParameter where it is none, or more than eight hours."""
    if text is None:
        return None
    found = TIME.fullmatch(text)
    seconds = float(found[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[found[2]] if found else 0.0
    if not 0 < seconds <= MOST_SOAK_S:
        raise click.BadParameter(f"'{text}' is no time up to 8h: write 90s, 30m or 2h")
    return seconds


@click.command("bench")
@bench_arguments
@click.option("--via", metavar="WAY", help="local, ssh://USER@HOST[:PORT], adb://SERIAL.  [default: local]")
@click.option("--python", metavar="PROGRAM", help="Python on the device.  [default: python3, or this one if local]")
@click.option("--server", metavar="PATH", help="llama-server on the device, to be used instead of Python.")
@click.option("--root", metavar="DIR", help="Working directory on the device.")
@click.option("--results", type=click.Path(), metavar="DIR", help="Read the job folder of a manual run.")
@click.option("--sweep", "axes", metavar="AXES", help="Try settings: threads, image_budget, scheme, threads=1:2.")
@click.option("--soak", metavar="TIME", callback=seconds_of, help="Ask in a row for 90s, 30m or 2h instead.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    default=1,
    metavar="N",
    help="Questions at once, of a soak of llama-server.  [default: 1]",
)
@dry_run_option
@fresh_option
@json_option
@verbose_option
@fetched("run")
def command(
    via: str | None,
    python: str | None,
    server: str | None,
    root: str | None,
    results: str | None,
    axes: str | None,
    soak: float | None,
    concurrency: int,
    dry_run: bool,
    fresh: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Run the exported model on the device; the verdict is holds, lost, inconclusive or invalid. Lost exits with 3.

    RUN is a folder that align made; missing exports are made first. Base and aligned answer the same questions here in
    full precision. After an interruption at any moment, rerun to resume.

    \b
    Examples:
      $ mpa-edge bench runs/mine --dry-run
      $ mpa-edge bench runs/mine --target jetson --via ssh://user@orin --dry-run
      $ mpa-edge bench runs/mine --target phone --via adb://SERIAL --as gguf-q8_0 --dry-run
      $ mpa-edge bench runs/mine --sweep threads,scheme --dry-run
      $ mpa-edge bench runs/mine --soak 30m --dry-run
    """
    reach = Reach(via, root, python, server)
    if soak and (axes or results):
        raise click.UsageError("--soak is a measurement of its own: leave out --sweep and --results")
    if concurrency > 1 and not soak:
        raise click.UsageError("--concurrency is for a soak: add --soak TIME")
    if dry_run:
        return plan(asked, reach, axes, soak, concurrency)
    if axes:
        with suppress_library_output(is_verbose()):
            made, path = sweep(axes, asked, reach, fresh)
        return show_sweep(made, path, as_json)
    from mpa_edge.bench.host.pipeline import read_results, run_bench
    from mpa_edge.bench.host.soak import run_soak
    from mpa_edge.bench.transports.connect import connect

    with suppress_library_output(is_verbose()):
        if results is None:  # exports take minutes: check first that the device can be reached
            with closing(connect(reach.via, root=reach.root)) as transport:
                transport.run("true", timeout_s=30.0, patient=False)
        benches = open_benches(asked | {"no_base": asked["no_base"] or bool(soak)}, reach)
        if results and len(benches) > 1:
            raise click.UsageError("--results is one job: give one --as")
        if soak:
            folders = [run_soak(bench, soak, concurrency, fresh) for bench in benches]
        else:
            folders = [read_results(b, Path(results)) if results else run_bench(b, fresh) for b in benches]
    return show_soaks(folders, as_json) if soak else show(benches, folders, as_json)


def plan(asked: dict[str, Any], reach: Reach, axes: str | None, soak: float | None, concurrency: int) -> None:
    """Print what would be measured."""
    show_plan(asked, reach.via or "local")
    if axes:
        from mpa_edge.bench.results.sweep import axes_of

        echo(f"sweep      {', '.join(axes_of(axes))}")
    if soak:
        echo(f"soak       {soak:g} s instead of both, {concurrency} at once")


def show_sweep(made: Sweep, path: Path, as_json: bool) -> None:
    """Print the settings of a sweep."""
    from mpa_edge.bench.report.table import render_sweep

    if as_json:
        print_json(made)
    else:
        echo(render_sweep(made))
        echo(f"everything is in {path}")


def show_soaks(folders: list[Path], as_json: bool) -> None:
    """Print each soak; exit with 3 where memory leaks."""
    from mpa_edge.bench.report.table import render_soak
    from mpa_edge.bench.results.soak import SOAK, Soak

    made = [Soak.model_validate_json((folder / SOAK).read_bytes()) for folder in folders]
    if as_json:
        documents = [one.model_dump(mode="json") for one in made]
        print_json(documents[0] if len(documents) == 1 else {"soaks": documents})
    else:
        for one, folder in zip(made, folders, strict=True):
            echo(render_soak(one))
            echo(f"everything is in {folder}; mpa-edge report draws it")
    if any(one.memory.verdict == "leaks" for one in made):
        raise click.exceptions.Exit(EXIT_LOST)


def show(benches: list[Bench], folders: list[Path], as_json: bool) -> None:
    """Print a table for each benchmark; exit with 3 where a gain is lost."""
    from mpa_edge.bench.report.read import read_bench
    from mpa_edge.bench.report.table import render_table

    made = [read_bench(folder) for folder in folders]
    if as_json:
        documents = [data.report.model_dump(mode="json") for data in made]
        print_json(documents[0] if len(documents) == 1 else {"benches": documents})
    else:
        for data, folder in zip(made, folders, strict=True):
            echo(render_table(data))
            echo(f"everything is in {folder}")
        echo(f"the report: mpa-edge report {benches[0].run}")
    if any(data.report.verdict == "lost" for data in made):
        raise click.exceptions.Exit(EXIT_LOST)
