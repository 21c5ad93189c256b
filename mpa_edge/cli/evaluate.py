"""Teacher, base and aligned, or any one model, on held-out questions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from mpa_edge.cli._evaluate_model import Asked, evaluate_questions, recipe_for
from mpa_edge.cli._options import is_verbose, print_json
from mpa_edge.cli._stage import run_named_stages, stage_arguments, suppress_library_output
from mpa_edge.errors import MpaError
from mpa_edge.metrics import METRICS

OUT_HELP = "Run folder; for a MODEL with --data: file for its answers, which a second start goes on with."


@click.command("evaluate")
@click.option(
    "--benchmark", metavar="NAME", help="textvqa, stvqa, chartqa or okvqa: ask MODEL its published questions."
)
@click.option(
    "--data", metavar="PATH", help="The benchmark's folder, parquet file or hub id; or own questions, .csv/.jsonl."
)
@click.option("--split", metavar="NAME", help="Of the benchmark.  [default: the one that the paper uses]")
@click.option("--metric", type=click.Choice(list(METRICS)), help="For own questions.  [default: of the model's run]")
@partial(stage_arguments, source="[RECIPE|RUN|MODEL]", out="RUN|FILE.jsonl", out_help=OUT_HELP)
def command(
    source: str | None, benchmark: str | None, data: str | None, split: str | None, metric: str | None, **arguments: Any
) -> None:
    """Ask teacher, base and aligned student the same held-out questions.

    A MODEL in the place of the run is asked alone: a checkpoint folder, anything that mpa-edge export made, or
    openai:BASE_URL#MODEL. Its questions are those of the run that it lies in, else those of the recipe minicharts with
    --set. With --data it is asked a benchmark, or your own questions about your own pictures (a table of image,
    question, answers); --limit is then the number of questions, and --out keeps every answer.

    \b
    Examples:
      $ mpa-edge evaluate runs/mine
      $ mpa-edge evaluate minicharts --dry-run
      $ mpa-edge evaluate nursery:student --limit 20
      $ mpa-edge evaluate runs/mine/merged --benchmark chartqa --data data/chartqa --limit 100 --out chartqa.jsonl
      $ mpa-edge evaluate runs/mine/merged --data photos/questions.csv --metric exact-match
    """
    if benchmark or data:
        asked = Asked(source, benchmark, data, split, metric, **arguments)
        return evaluate_questions(asked)
    if split or metric or (source and source.endswith((".csv", ".jsonl"))):
        raise MpaError("--split and --metric need questions: add --data with a benchmark's folder or a questions file")
    if source is None or not is_model(source):
        return run_named_stages(("evaluate",), source=source, **arguments)
    return evaluate_model(
        source, arguments["overrides"], arguments["limit"], arguments["dry_run"], arguments["as_json"]
    )


def is_model(source: str) -> bool:
    """Whether a name is a model rather than a run or a recipe."""
    folder = Path(source)
    return source.startswith(("nursery:", "openai:")) or any(
        (folder / name).is_file() for name in ("artifact.json", "config.json")
    )


def evaluate_model(model: str, overrides: tuple[str, ...], limit: int | None, dry_run: bool, as_json: bool) -> None:
    """Ask one model and print how it did; nothing is kept."""
    from tempfile import TemporaryDirectory

    from mpa_edge.evaluation.predict import examine
    from mpa_edge.vlm import load

    recipe = recipe_for(model, overrides, limit)
    if dry_run:
        return click.echo(f"ask {model} {recipe.evaluate.n} questions of task {recipe.task}")
    with suppress_library_output(is_verbose()), TemporaryDirectory(prefix="mpa-edge-") as scratch:
        name, server = Path(model).name, recipe.teacher_server
        vlm = load(model, name=name, device=recipe.device, threads=recipe.threads, server=server)
        result = examine(vlm, recipe, Path(scratch))
        vlm.close()
    if as_json:
        return print_json(result)
    low, high = result["ci95"]
    click.echo(f"{model}: {result['accuracy']:.1%} of {result['n']} questions, {result['metric']}")
    click.echo(f"95 % interval {low:.1%} to {high:.1%}; {result['seconds']:.0f} s")
    for kind, row in result["kinds"].items():
        click.echo(f"  {kind} ({row['n']:.0f}) {row['accuracy']:.0%}")
    return None
