"""A run on a rented machine: how far it is, what it says, fetch it, end it."""

from __future__ import annotations

import click

from mpa_edge.cli._options import json_option, print_json, verbose_option


@click.group("cloud")
def command() -> None:
    """Look after a run that mpa-edge align --cloud or --hf-jobs has launched."""


def _show(line: str, is_stderr: bool) -> None:
    click.echo(line, err=is_stderr)


@command.command("status")
@click.argument("name")
@json_option
@verbose_option
def status(name: str, as_json: bool) -> None:
    """Say how far job NAME (or that of a folder) is.

    \b
    Examples:
      $ mpa-edge cloud status charts
    """
    from mpa_edge.cloud import follow, state

    folder, launched = state.find_job(name)
    found, run = follow.status(launched, _show), follow.progress(launched)
    if as_json:
        print_json(launched.model_dump(mode="json") | {"folder": str(folder), "status": found, "run": run})
        return
    click.echo(f"{launched.name}: {found}")
    click.echo(f"run: {run}")
    click.echo(f"launched {launched.launched_at:%Y-%m-%d %H:%M} UTC with {launched.provider}; kept at {launched.url}")


@command.command("logs")
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job ends.")
@verbose_option
def logs(name: str, follow: bool) -> None:
    """Print what job NAME has said so far.

    \b
    Examples:
      $ mpa-edge cloud logs charts
    """
    from mpa_edge.cloud import follow as following
    from mpa_edge.cloud import state

    following.logs(state.find_job(name)[1], follow, _show)


@command.command("fetch")
@click.argument("name")
@verbose_option
def fetch(name: str) -> None:
    """Bring the run folder of job NAME here; again, to bring what is new.

    \b
    Examples:
      $ mpa-edge cloud fetch charts
    """
    from mpa_edge.cloud import follow, state

    folder, launched = state.find_job(name)
    follow.fetch(folder, launched, _show)
    click.echo(f"{launched.url} is here: {folder}")


@command.command("down")
@click.argument("name")
@verbose_option
def down(name: str) -> None:
    """End job NAME and give its machine back; what it has written stays in the bucket.

    \b
    Examples:
      $ mpa-edge cloud down charts
    """
    from mpa_edge.cloud import follow, state

    folder, launched = state.find_job(name)
    follow.down(folder, launched, _show)
    click.echo(f"{launched.name} is down; its run stays at {launched.url}")
