"""Let the large VLM write questions and answers about the images."""

from __future__ import annotations

from typing import Any

import click

from mpa_edge.cli._stage import engine_options, run_named_stages, stage_arguments


@click.command("annotate")
@stage_arguments
@engine_options
def command(**arguments: Any) -> None:
    """Pseudo Annotator: the teacher writes questions with answers about each image, then answers them again.

    \b
    Examples:
      $ mpa-edge annotate runs/mine
      $ mpa-edge annotate minicharts --dry-run
      $ mpa-edge annotate minicharts --engine ray --set engine.actors=2 --dry-run
    """
    run_named_stages(("annotate",), **arguments)
