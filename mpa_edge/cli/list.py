"""List recipes, targets, schemes, tasks and families."""

from __future__ import annotations

import click

from mpa_edge.cli import _registry
from mpa_edge.cli._options import echo, json_option, print_json, verbose_option


@click.command("list")
@click.argument("kind", type=click.Choice(_registry.KINDS), required=False)
@json_option
@verbose_option
def command(kind: str | None, as_json: bool) -> None:
    """List recipes, targets, schemes, tasks and families, or one KIND of them.

    \b
    Examples:
      $ mpa-edge list
      $ mpa-edge list recipes
      $ mpa-edge list tasks --json
    """
    found = {
        one: [{"name": name, "title": _registry.title(one, name)} for name in _registry.names(one)]
        for one in ([kind] if kind else _registry.KINDS)
    }
    if as_json:
        print_json(found)
        return
    for one, rows in found.items():
        echo(f"{one}:")
        for row in rows:
            echo(f"  {row['name']:24} {row['title']}".rstrip())
