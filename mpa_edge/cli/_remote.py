"""Run folders behind a URL, for every command that takes a run: it works in a local copy, which is uploaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import click

from mpa_edge.errors import MpaError
from mpa_edge.runs.manifest import RUN_FILE
from mpa_edge.runs.remote.stores import is_url

WORK_KEY = "mpa_edge.work"


def _remember_work(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    ctx.meta[WORK_KEY] = value


# not a parameter of the command: it matters only to a run behind a URL
work_option = click.option(
    "--work",
    type=click.Path(),
    metavar="DIR",
    expose_value=False,
    callback=_remember_work,
    help="Working copy of a run behind a URL (s3://BUCKET/FOLDER).  [default: in the cache folder]",
)


@contextmanager
def here(run: str | None, new: bool = False) -> Iterator[str | None]:
    """The local folder of a run: for a URL its working copy, which is uploaded while the block runs.

    `new`: the run need not exist yet. MpaError if another process works in it, or there is no run.
    """
    if run is None or not is_url(run):
        yield run
        return
    from mpa_edge.runs.remote.mirror import working_copy

    with working_copy(run, click.get_current_context().meta.get(WORK_KEY)) as folder:
        if not new and not (folder / RUN_FILE).is_file():
            raise MpaError(f"{run} contains no run: mpa-edge align RECIPE --out {run} creates one")
        yield str(folder)


@contextmanager
def both_here(source: str | None, out: str | None, dry_run: bool) -> Iterator[tuple[str | None, str | None]]:
    """The same for SOURCE and --out. With --dry-run, no request is made for a URL that would only be written to."""
    if is_url(source) and is_url(out) and str(source).rstrip("/") == str(out).rstrip("/"):
        out = None
    if is_url(source) and is_url(out):
        raise MpaError(f"{source} and {out} are two runs behind URLs: give --out a local folder")
    if dry_run and is_url(out):
        from mpa_edge.runs.remote.mirror import work_folder

        yield source, str(work_folder(str(out)))
        return
    with here(source) as local, here(out, new=True) as local_out:
        yield local, local_out


def fetched(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For a command whose argument `name` is one or several run folders: a URL is replaced by its working copy."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @work_option
        @wraps(function)
        def command(**arguments: Any) -> Any:
            asked = arguments[name]
            with ExitStack() as stack:
                local = [stack.enter_context(here(run)) for run in (asked if isinstance(asked, tuple) else (asked,))]
                arguments[name] = tuple(local) if isinstance(asked, tuple) else local[0]
                return function(**arguments)

        return command

    return decorate
