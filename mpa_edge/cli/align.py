"""Run all five stages: from unlabelled images to an aligned small VLM."""

from __future__ import annotations

from typing import Any

import click

from mpa_edge.cli._cloud import or_in_the_cloud
from mpa_edge.cli._stage import engine_options, run_named_stages, stage_arguments


@click.command("align")
@or_in_the_cloud
@stage_arguments
@engine_options
@click.option(
    "--max-cost",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Stop before the teacher's server has cost this run more, in the currency of the recipe's prices.",
)
def command(max_cost: float | None, overrides: tuple[str, ...], **arguments: Any) -> None:
    """Align a small VLM with a large one: annotate, identify, level, merge, evaluate.

    RECIPE is a name (mpa-edge list recipes) or a YAML file; RUN is a run folder to resume.
    Without either, the built-in models are aligned on built-in images.

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
