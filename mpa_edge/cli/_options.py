"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mpa_edge.cli.main import VERBOSE_KEY
from mpa_edge.config.accelerator import ACCELERATORS, AUTO
from mpa_edge.errors import MpaError
from mpa_edge.runs.log import escaped, show_log

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def _remember_verbose(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    # main.py reads it after the command has failed
    ctx.meta[VERBOSE_KEY] = value
    show_log(value)


def is_verbose() -> bool:
    """Whether `-v` was given to the command that runs."""
    return bool(click.get_current_context().meta.get(VERBOSE_KEY))


class _MetricName(click.ParamType):  # type: ignore[type-arg]  # not generic in all versions
    name = "metric"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from mpa_edge.metrics import get_metric

        try:
            return get_metric(str(value)).name
        except MpaError as error:
            self.fail(str(error), param, ctx)


METRIC = _MetricName()
"""The name of a metric, with its parameters."""
ACCELERATOR = click.Choice((*ACCELERATORS, AUTO))
"""The name of an accelerator."""
verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_remember_verbose,
    help="Show the log (run.log) and the traceback of an error.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document on stdout.")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value of the recipe, e.g. level.rank=16."
)
limit_option = click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use only the first N images.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print what would run, on what, and stop.")
fresh_option = click.option("--fresh", is_flag=True, help="Discard earlier results of this run.")


def run_options(function: Decorated) -> Decorated:
    """All shared options of a command on a run folder: overrides, limit, dry_run, fresh, as_json.

    `-v` is no parameter: call is_verbose().
    """
    for option in (verbose_option, json_option, fresh_option, dry_run_option, limit_option, set_option):
        function = option(function)
    return function


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text that may hold names of other people's devices, files and models."""
    click.echo(escaped(text), err=err, nl=nl)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout: plain values, or a pydantic model."""
    plain = document.model_dump(mode="json") if hasattr(document, "model_dump") else document
    echo(json.dumps(plain, indent=2, ensure_ascii=False))
