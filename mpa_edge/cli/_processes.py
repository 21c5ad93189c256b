"""Flags that spread training over several processes, GPUs or machines."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from mpa_edge.errors import MpaError
from mpa_edge.runs.remote.stores import is_url

COUNT_HELP = "Train in N processes, a GPU each, on all machines together; what is learned stays the same."
CONFIG_HELP = "Configuration file of accelerate, for several machines and what else it can; goes to it as it is."


def process_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--num-processes and --accelerate-config, as one `processes` for the function."""

    @click.option("--num-processes", type=click.IntRange(min=1), metavar="N", help=COUNT_HELP)
    @click.option("--accelerate-config", type=click.Path(), metavar="FILE", help=CONFIG_HELP)
    @wraps(function)
    def with_processes(num_processes: int | None, accelerate_config: str | None, **arguments: Any) -> Any:
        from mpa_edge.stages.level.processes import processes

        asked = processes(num_processes, accelerate_config)
        if asked and asked.machines > 1 and (is_url(arguments["source"]) or is_url(arguments["out"])):
            raise MpaError("several machines train in one run folder: use a folder that all of them mount, not a URL")
        return function(processes=asked, **arguments)

    return with_processes
