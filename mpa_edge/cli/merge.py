"""Merge the adapter into the base model: one plain checkpoint."""

from __future__ import annotations

from typing import Any

import click

from mpa_edge.cli._stage import run_named_stages, stage_arguments


@click.command("merge")
@stage_arguments
def command(**arguments: Any) -> None:
    """Merge the adapter into the student, and check the tensors and logits of the saved checkpoint.

    \b
    Examples:
      $ mpa-edge merge runs/mine
      $ mpa-edge merge minicharts --dry-run
    """
    run_named_stages(("merge",), **arguments)
