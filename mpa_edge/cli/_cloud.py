"""`mpa-edge align --cloud` and `--hf-jobs`: the options, the estimate on the screen, the file, the launch."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mpa_edge.cli._options import print_json
from mpa_edge.errors import MpaError

if TYPE_CHECKING:
    from mpa_edge.cloud.job import Job
    from mpa_edge.cloud.launch import Asked, Rendered
    from mpa_edge.cloud.machine import Needs

ELSEWHERE = ("cloud", "hf_jobs", "cloud_name", "bucket", "gpus", "image_count", "secrets", "on_demand")
OURS = ("source", "images", "out", "dry_run", "as_json", *ELSEWHERE)
"""Parameters that say where the job runs; all others go to the align command of the job as they are."""
NO_ESTIMATE = "no estimate: the sizes of its models are not known here, so neither hours nor cost are"
OPTIONS = (
    click.option("--cloud", is_flag=True, help="Run it on a rented machine, with SkyPilot."),
    click.option("--hf-jobs", is_flag=True, help="Run it as a Hugging Face Job."),
    click.option("--cloud-name", metavar="NAME", help="Name of that job.  [default: the recipe's]"),
    click.option("--bucket", metavar="URL", help="Bucket that keeps that run, e.g. s3://BUCKET/runs."),
    click.option("--gpus", metavar="NAME[:N]", help="Machine for that job, instead of what the plan chooses."),
    click.option("--image-count", type=click.IntRange(min=1), metavar="N", help="How many pictures --images URL has."),
    click.option("--secret", "secrets", multiple=True, metavar="NAME", help="Environment variable it needs, too."),
    click.option("--on-demand", is_flag=True, help="No spot machines: dearer, never taken away."),
)


def or_elsewhere(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that send a run to another machine; without them the command does as it did."""

    @wraps(function)
    def command(**arguments: Any) -> Any:
        where = {name: arguments.pop(name) for name in ELSEWHERE}
        if where["cloud"] or where["hf_jobs"]:
            return run_elsewhere(click.get_current_context())
        alone = [name for name, value in where.items() if value]
        if alone:
            flag = "--" + alone[0].replace("_", "-").removesuffix("s" if alone[0] == "secrets" else "")
            raise click.UsageError(f"{flag} is for a run that is sent elsewhere: add --cloud or --hf-jobs")
        return function(**arguments)

    first = list(getattr(command, "__click_params__", []))
    for option in reversed(OPTIONS):
        command = option(command)
    # click shows the last ones first: what most people do not need comes at the end of the help
    command.__click_params__ = command.__click_params__[len(first) :] + first  # type: ignore[attr-defined]
    return command


def passed_on(ctx: click.Context) -> tuple[tuple[str, ...], dict[str, Path]]:
    """The words of this command line that the job's align command gets: all that say how, not where.

    Files that they name go into the kit. MpaError for what a job that starts again after each loss of its machine
    cannot have.
    """
    from mpa_edge.cloud.mounts import KIT

    words: list[str] = []
    files: dict[str, Path] = {}
    for param in ctx.command.params:
        name = str(param.name)
        given = ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE
        if not given or name in OURS or not isinstance(param, click.Option) or not param.expose_value:
            continue
        if name == "fresh":
            raise MpaError("--fresh would forget the run each time its machine is replaced: give another --cloud-name")
        flag, value = param.opts[-1], ctx.params[name]
        if isinstance(param.type, click.Path) and Path(value).is_file():
            name = flag.strip("-") + Path(value).suffix
            files[name], value = Path(value), f"{KIT}/{name}"
        for one in value if param.multiple else (value,):
            words += [flag] if param.is_flag else [flag, str(one)]
    return tuple(words), files


def run_elsewhere(ctx: click.Context) -> None:
    """Estimate, file, command; and, but for --dry-run, the launch where the provider's program is there."""
    from mpa_edge.cloud.launch import PROGRAMS, make_job, render, write
    from mpa_edge.cloud.program import find

    given = ctx.params
    job = make_job(_asked(ctx))
    estimate = [*estimate_lines(job.needs), *travel_lines(job)]
    rendered = render(job, estimate)
    if given["as_json"]:
        print_json(document(rendered))
    else:
        show(rendered, estimate, given["dry_run"])
    if given["dry_run"]:
        return
    write(rendered)
    name, how = PROGRAMS[job.provider]
    found = find(name)
    if found is None:
        click.echo(f"{name} is not on PATH ({how}); {rendered.file} is written. Start it:", err=True)
        click.echo(rendered.command_line, err=given["as_json"])
        return
    _launch(rendered, found, given["as_json"])


def _asked(ctx: click.Context) -> Asked:
    from mpa_edge.cloud.launch import Asked

    given = ctx.params
    if given["cloud"] and given["hf_jobs"]:
        raise click.UsageError("--cloud and --hf-jobs are two places: keep one")
    options, files = passed_on(ctx)
    return Asked(
        provider="hf" if given["hf_jobs"] else "sky",
        source=given["source"],
        images=given["images"],
        out=given["out"],
        name=given["cloud_name"],
        bucket=given["bucket"],
        gpus=given["gpus"],
        n_images=given["image_count"],
        secrets=given["secrets"],
        spot=not given["on_demand"],
        overrides=given["overrides"],
        limit=given["limit"],
        options=options,
        files=files,
    )


def _launch(rendered: Rendered, found: str, as_json: bool) -> None:
    """Start it; somebody at a terminal is asked before, as it costs money."""
    from mpa_edge.cloud.launch import launch
    from mpa_edge.cloud.state import RUNS

    asked = sys.stdin.isatty() and sys.stderr.isatty()
    if asked and not click.confirm("Launch it?", default=True, err=True):
        click.echo(f"not launched; {rendered.file} is written. Start it:", err=True)
        click.echo(rendered.command_line, err=as_json)
        return
    launched = launch(rendered, found, lambda line, _is_stderr: click.echo(line, err=True))
    click.echo(f"launched {launched.name}; its run is kept at {launched.url}", err=as_json)
    folder = rendered.job.folder
    name = launched.name if folder == (RUNS / launched.name).resolve() else shlex.quote(str(folder))
    click.echo(f"mpa-edge cloud status {name}  # also logs, fetch, down", err=as_json)


def estimate_lines(needs: Needs) -> list[str]:
    """What it will take, on each machine that is asked for."""
    from mpa_edge.cli.plan import NOTE, table

    if needs.plan is None:
        return [NO_ESTIMATE]
    machines = needs.chosen or needs.plan.machines
    if not machines:
        return [f"no estimate: {', '.join(needs.gpus)} is not on the list of mpa-edge plan"]
    return [
        f"{needs.plan.recipe.name}: {needs.plan.images.n} images ({needs.plan.images.source})",
        *table(tuple(machines)),
        "storage and traffic are not included",
        NOTE.partition(" --json")[0],
    ]


def travel_lines(job: Job) -> list[str]:
    """How pictures and models get there."""
    return [
        f"{mount.what}: {mount.source}, read there"
        if mount.size_bytes is None
        else f"{mount.what}: {mount.source}, {mount.size_bytes / 1e6:,.1f} MB, copied by {job.provider} into a bucket"
        for mount in job.travel.mounts
    ]


def show(rendered: Rendered, estimate: list[str], dry_run: bool) -> None:
    """The estimate; with --dry-run inside the file, as it would be written."""
    if not dry_run:
        lines = estimate
    elif rendered.job.provider == "hf":
        start = ["start it:", f"  {rendered.command_line}"]
        lines = [*(f"# {line}" for line in (*estimate, *start)), rendered.text.rstrip("\n")]
    else:
        lines = [rendered.text.rstrip("\n")]
    for line in lines:
        click.echo(line)


def document(rendered: Rendered) -> dict[str, Any]:
    """The same as one JSON document."""
    job = rendered.job
    return {
        "name": job.name,
        "provider": job.provider,
        "url": job.url,
        "file": str(rendered.file),
        "content": rendered.text,
        "command": list(rendered.command),
        "secrets": list(job.secrets),
        "estimate": [
            {"device": one.machine.name, "hours": one.seconds / 3600, "usd": one.usd} for one in job.needs.chosen
        ],
    }
