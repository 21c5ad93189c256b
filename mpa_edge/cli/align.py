"""Unlabelled images in, aligned small VLM out: all five stages."""

from __future__ import annotations

from typing import Any

import click

from mpa_edge.cli._stage import run_named_stages, stage_arguments


@click.command("align")
@stage_arguments
def command(**arguments: Any) -> None:
    """Align a small VLM with a large one: annotate, identify, level, merge, evaluate.

    RECIPE is a name (mpa-edge list recipes) or a YAML file; RUN is a run folder, which goes on where it was.
    Without either, the built-in models learn the built-in pictures.

    \b
    Examples:
      $ mpa-edge align --images charts/ --out runs/mine
      $ mpa-edge align minicharts --dry-run
    """
    run_named_stages(("annotate", "identify", "level", "merge", "evaluate"), **arguments)
