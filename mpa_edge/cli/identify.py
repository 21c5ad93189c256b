"""Find what the large VLM confirms and the small one gets wrong."""

from __future__ import annotations

from typing import Any

import click

from mpa_edge.cli._stage import engine_options, run_named_stages, stage_arguments


@click.command("identify")
@stage_arguments
@engine_options
def command(**arguments: Any) -> None:
    """Parity Identifier: find what the teacher answers the same way twice and the student gets wrong.

    \b
    Examples:
      $ mpa-edge identify runs/mine
      $ mpa-edge identify minicharts --dry-run
    """
    run_named_stages(("identify",), **arguments)
