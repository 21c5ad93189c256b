"""Teacher, base and aligned, or any one model, on held-out questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpa_edge.cli._options import is_verbose, print_json
from mpa_edge.cli._stage import only_our_words, run_named_stages, stage_arguments

if TYPE_CHECKING:
    from mpa_edge.recipe import Recipe


@click.command("evaluate")
@stage_arguments
def command(source: str | None, **arguments: Any) -> None:
    """Ask teacher, base and aligned student the same held-out questions.

    A MODEL in the place of the run is asked alone: a checkpoint folder, or anything that mpa-edge export made. Its
    questions are those of the run that it lies in, else those of the recipe minicharts with --set.

    \b
    Examples:
      $ mpa-edge evaluate runs/mine
      $ mpa-edge evaluate minicharts --dry-run
      $ mpa-edge evaluate nursery:student --limit 20
    """
    if source is None or not is_model(source):
        return run_named_stages(("evaluate",), source=source, **arguments)
    return evaluate_model(
        source, arguments["overrides"], arguments["limit"], arguments["dry_run"], arguments["as_json"]
    )


def is_model(source: str) -> bool:
    """Whether a name is a model rather than a run or a recipe."""
    folder = Path(source)
    return source.startswith("nursery:") or any((folder / name).is_file() for name in ("artifact.json", "config.json"))


def evaluate_model(model: str, overrides: tuple[str, ...], limit: int | None, dry_run: bool, as_json: bool) -> None:
    """Ask one model and print how it did; nothing is kept."""
    from tempfile import TemporaryDirectory

    from mpa_edge.evaluation import examine
    from mpa_edge.vlm import load

    recipe = recipe_for(model, overrides, limit)
    if dry_run:
        return click.echo(f"ask {model} {recipe.evaluate.n} questions of task {recipe.task}")
    with only_our_words(is_verbose()), TemporaryDirectory(prefix="mpa-edge-") as scratch:
        vlm = load(model, name=Path(model).name, device=recipe.device, threads=recipe.threads)
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


def recipe_for(model: str, overrides: tuple[str, ...], limit: int | None) -> Recipe:
    """The recipe of the run that a model lies in, else the built-in one; --limit is the number of questions."""
    from mpa_edge.assets import load_recipe
    from mpa_edge.runs import RECIPE_FILE, RUN_FILE

    folders = Path(model).resolve().parents
    run = next((folder for folder in folders[:3] if (folder / RUN_FILE).is_file()), None)
    recipe = load_recipe(str(run / RECIPE_FILE) if run else "minicharts", overrides)
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"n": limit})}) if limit else recipe
