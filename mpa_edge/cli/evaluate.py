"""Teacher, base and aligned on the same held-out questions."""

from __future__ import annotations

from typing import Any

import click

from mpa_edge.cli._stage import run_named_stages, stage_arguments


@click.command("evaluate")
@stage_arguments
def command(**arguments: Any) -> None:
    """Ask teacher, base and aligned student the same held-out questions.

    \b
    Examples:
      $ mpa-edge evaluate runs/mine
      $ mpa-edge evaluate minicharts --dry-run
    """
    run_named_stages(("evaluate",), **arguments)
