"""Flags that say who annotates and identifies: this process, or the actors of a Ray cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

ENGINE_HELP = "Who asks the models: this process, or the actors of a Ray cluster."
ADDRESS_HELP = (
    "Ray cluster: auto (the one of this machine), HOST:PORT or ray://HOST:PORT.  [default: one is started here]"
)


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--engine and --ray-address, as one `engine` for the function."""

    @click.option("--engine", "name", type=click.Choice(["local", "ray"]), default="local", help=ENGINE_HELP)
    @click.option("--ray-address", "address", metavar="ADDRESS", help=ADDRESS_HELP)
    @functools.wraps(function)
    def with_engine(name: Any, address: str | None, **arguments: Any) -> Any:
        from mpa_edge.engines.job import Engine

        if address is not None and name != "ray":
            raise click.UsageError("--ray-address belongs to --engine ray: give both")
        return function(engine=Engine(name, address), **arguments)

    return with_engine
