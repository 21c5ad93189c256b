"""The large VLM writes questions and answers about the images."""

from __future__ import annotations

from typing import Any

import click

from mpa_edge.cli._engine import engine_options
from mpa_edge.cli._stage import run_named_stages, stage_arguments


@click.command("annotate")
@stage_arguments
@engine_options
def command(**arguments: Any) -> None:
    """Pseudo Annotator: the teacher writes a question and an answer for each image, and answers again.

    \b
    Examples:
      $ mpa-edge annotate runs/mine
      $ mpa-edge annotate minicharts --dry-run
      $ mpa-edge annotate minicharts --engine ray --set engine.actors=2 --dry-run
    """
    run_named_stages(("annotate",), **arguments)
