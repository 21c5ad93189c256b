"""Validate recipes: every mistake in one line."""

from __future__ import annotations

import click

from mpa_edge import assets
from mpa_edge.cli import _registry
from mpa_edge.cli._options import json_option, print_json, set_option, verbose_option


def problems(name: str, overrides: tuple[str, ...]) -> list[str]:
    """Every mistake of one recipe; the task must exist, too."""
    found = assets.recipe_problems(name, overrides)
    if found:
        return found
    task, tasks = assets.load_recipe(name, overrides).task, _registry.names("tasks")
    if tasks and task not in tasks:
        return [f"recipe '{assets.find('recipes', name).stem}': no task '{task}' (known: {', '.join(tasks)})"]
    return []


@click.command("check")
@click.argument("names", metavar="FILE_OR_NAME...", nargs=-1, required=True)
@set_option
@json_option
@verbose_option
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Check recipes: unknown keys, wrong types, values out of range. Exit 1 where one is wrong.

    \b
    Examples:
      $ mpa-edge check minicharts
      $ mpa-edge check minicharts --set level.rank=8 --json
    """
    found = {name: problems(name, overrides) for name in names}
    if as_json:
        print_json({"ok": not any(found.values()), "problems": found})
    for name, lines in () if as_json else found.items():
        for line in lines:
            click.echo(line, err=True)
        if not lines:
            click.echo(f"{name}: ok")
    if any(found.values()):
        ctx.exit(1)
