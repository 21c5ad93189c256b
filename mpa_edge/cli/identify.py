"""Keep what the large VLM confirms and the small one gets wrong."""

from __future__ import annotations

from typing import Any

import click

from mpa_edge.cli._engine import engine_options
from mpa_edge.cli._stage import run_named_stages, stage_arguments


@click.command("identify")
@stage_arguments
@engine_options
def command(**arguments: Any) -> None:
    """Parity Identifier: keep what the teacher answers the same way twice and the student gets wrong.

    \b
    Examples:
      $ mpa-edge identify runs/mine
      $ mpa-edge identify minicharts --dry-run
    """
    run_named_stages(("identify",), **arguments)
