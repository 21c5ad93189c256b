"""`mpa-edge align --cloud` and `--hf-jobs`: options, estimate, task file and launch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mpa_edge.cli._options import print_json
from mpa_edge.errors import MpaError

if TYPE_CHECKING:
    from mpa_edge.cloud.job import Job
    from mpa_edge.cloud.launch import Rendered

CLOUD = ("cloud", "hf_jobs", "cloud_name", "bucket", "gpus", "image_count", "secrets", "on_demand")
OURS = ("source", "images", "out", "dry_run", "as_json", *CLOUD)
"""Parameters that say where the job runs; all others are passed to the align command of the job."""
OPTIONS = (
    click.option("--cloud", is_flag=True, help="Run on a rented machine, with SkyPilot."),
    click.option("--hf-jobs", is_flag=True, help="Run as a Hugging Face Job."),
    click.option("--cloud-name", metavar="NAME", help="Name of the cloud job.  [default: the recipe's]"),
    click.option("--bucket", metavar="URL", help="Bucket for the run folder of a cloud job, e.g. s3://BUCKET/runs."),
    click.option("--gpus", metavar="NAME[:N]", help="GPU of the cloud job, instead of the one that the plan chooses."),
    click.option("--image-count", type=click.IntRange(min=1), metavar="N", help="Number of images at --images URL."),
    click.option(
        "--secret", "secrets", multiple=True, metavar="NAME", help="Environment variable to pass to the cloud job."
    ),
    click.option("--on-demand", is_flag=True, help="Use on-demand instead of spot machines."),
)


def or_in_the_cloud(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that run a command on a rented machine."""

    @wraps(function)
    def command(**arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in CLOUD}
        if given["cloud"] or given["hf_jobs"]:
            return _run(click.get_current_context())
        for name in [name for name, value in given.items() if value]:
            flag = "--" + name.replace("_", "-").replace("secrets", "secret")
            raise click.UsageError(f"{flag} is for a run on a rented machine: add --cloud or --hf-jobs")
        return function(**arguments)

    first = list(getattr(command, "__click_params__", []))
    for option in reversed(OPTIONS):
        command = option(command)
    # click shows the last ones first: what most people do not need comes at the end of the help
    command.__click_params__ = command.__click_params__[len(first) :] + first  # type: ignore[attr-defined]
    return command


def _passed_on(ctx: click.Context) -> list[str]:
    """The words of this command line that the align command of the job gets."""
    words: list[str] = []
    for param in ctx.command.params:
        name = str(param.name)
        given = ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE
        if not given or name in OURS or not isinstance(param, click.Option) or not param.expose_value:
            continue
        if name == "fresh":
            raise MpaError("--fresh would restart the run whenever its machine is replaced: use another --cloud-name")
        for value in ctx.params[name] if param.multiple else (ctx.params[name],):
            words += [param.opts[-1]] if param.is_flag else [param.opts[-1], str(value)]
    return words


def _run(ctx: click.Context) -> None:
    """Print the estimate, write the task file and launch it; --dry-run prints both and writes nothing."""
    from mpa_edge.cloud.job import make_job
    from mpa_edge.cloud.launch import PROVIDERS, find_program, launch, render, write

    given, options = ctx.params, _passed_on(ctx)
    if given["cloud"] and given["hf_jobs"]:
        raise click.UsageError("--cloud and --hf-jobs exclude each other: keep one")
    same = ("source", "images", "out", "bucket", "gpus", "image_count", "secrets", "overrides", "limit")
    job = make_job(
        provider="hf" if given["hf_jobs"] else "sky",
        name=given["cloud_name"],
        spot=not given["on_demand"],
        options=options,
        **{name: given[name] for name in same},
    )
    estimate = _estimate(job)
    rendered = render(job, estimate)
    as_json = given["as_json"]
    if as_json:
        print_json(_document(rendered))
    elif not given["dry_run"]:
        click.echo("\n".join(estimate))
    else:
        script = [*(f"# {line}" for line in (*estimate, rendered.command_line)), rendered.text]
        click.echo("\n".join(script if job.provider == "hf" else [rendered.text]).rstrip("\n"))
    if given["dry_run"]:
        return
    write(rendered)
    program = find_program(job.provider)
    why = f"{job.provider} is not on PATH ({PROVIDERS[job.provider].INSTALL})" if program is None else ""
    if program and sys.stdin.isatty() and sys.stderr.isatty() and not click.confirm("Launch it?", True, err=True):
        why = "not launched"
    if program is None or why:
        click.echo(f"{why}; {rendered.file} is written. Start it:", err=True)
        click.echo(rendered.command_line, err=as_json)
        return
    launch(rendered, program, lambda line: click.echo(line, err=True))
    click.echo(f"launched {job.name}; its run is kept at {job.url}", err=as_json)


def _estimate(job: Job) -> list[str]:
    """Time and cost on each machine that is asked for, and what is copied."""
    from mpa_edge.cli.plan import NOTE, table

    plan, machines = job.needs.plan, job.needs.chosen
    if plan is None:
        lines = ["no estimate: the sizes of its models are not known here"]
    elif not machines:
        lines = [f"no estimate: {', '.join(job.needs.gpus)} is not a device of mpa-edge plan, or too small"]
    else:
        lines = [f"{plan.recipe.name}: {plan.images.n} images ({plan.images.source})", *table(machines)]
        lines += ["storage and traffic are not included", NOTE.partition(" --json")[0]]
    for mount in job.mounts:
        size = "read there" if mount.size_bytes is None else f"{mount.size_bytes / 1e6:,.1f} MB, copied into a bucket"
        lines.append(f"{mount.what}: {mount.source}, {size}")
    return lines


def _document(rendered: Rendered) -> dict[str, Any]:
    """The job as a JSON document."""
    job = rendered.job
    chosen = job.needs.chosen
    return {
        "name": job.name,
        "provider": job.provider,
        "url": job.url,
        "file": str(rendered.file),
        "content": rendered.text,
        "command": list(rendered.command),
        "secrets": list(job.secrets),
        "estimate": [{"device": one.machine.name, "hours": one.seconds / 3600, "usd": one.usd} for one in chosen],
    }
