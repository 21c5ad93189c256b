"""Tune the small VLM on exactly that."""

from __future__ import annotations

from typing import Any

import click

from mpa_edge.cli._processes import process_options
from mpa_edge.cli._stage import run_named_stages, stage_arguments


@click.command("level")
@stage_arguments
@process_options
def command(**arguments: Any) -> None:
    """Parity Leveler: tune the student on the gap with LoRA, from the last checkpoint where there is one.

    \b
    Examples:
      $ mpa-edge level runs/mine
      $ mpa-edge level minicharts --dry-run
      $ mpa-edge level runs/mine --num-processes 2
    """
    run_named_stages(("level",), **arguments)
