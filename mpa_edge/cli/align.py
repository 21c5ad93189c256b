"""Unlabelled images in, aligned small VLM out: all five stages."""

from __future__ import annotations

from typing import Any

import click

from mpa_edge.cli._cloud import or_elsewhere
from mpa_edge.cli._engine import engine_options
from mpa_edge.cli._processes import process_options
from mpa_edge.cli._stage import run_named_stages, stage_arguments


@click.command("align")
@or_elsewhere
@stage_arguments
@engine_options
@process_options
@click.option(
    "--max-cost",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Stop before a teacher behind a server has cost this run more, in the currency of the recipe's prices.",
)
def command(max_cost: float | None, overrides: tuple[str, ...], **arguments: Any) -> None:
    """Align a small VLM with a large one: annotate, identify, level, merge, evaluate.

    RECIPE is a name (mpa-edge list recipes) or a YAML file; RUN is a run folder, which goes on where it was.
    Without either, the built-in models learn the built-in pictures.

    \b
    Examples:
      $ mpa-edge align --images charts/ --out runs/mine
      $ mpa-edge align minicharts --dry-run
      $ mpa-edge align minicharts --out s3://my-bucket/runs/mine --dry-run
      $ mpa-edge align my-recipe.yaml --images charts/ --cloud --bucket s3://my-bucket/runs --dry-run
    """
    if max_cost is not None:
        overrides = (*overrides, f"teacher_server.max_cost={max_cost:.9f}")
    names = ("annotate", "identify", "level", "merge", "evaluate")
    run_named_stages(names, overrides=overrides, **arguments)
