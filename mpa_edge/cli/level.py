"""Fine-tune the small VLM on the gap."""

from __future__ import annotations

from typing import Any

import click

from mpa_edge.cli._stage import run_named_stages, stage_arguments


@click.command("level")
@stage_arguments
def command(**arguments: Any) -> None:
    """Parity Leveler: fine-tune the student on the gap, from the last checkpoint if there is one.

    On several GPUs: accelerate launch --num_processes N -m mpa_edge level RUN

    \b
    Examples:
      $ mpa-edge level runs/mine
      $ mpa-edge level minicharts --dry-run
    """
    run_named_stages(("level",), **arguments)
