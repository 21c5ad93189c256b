"""Show one recipe, target, scheme, task or family."""

from __future__ import annotations

import dataclasses
import json
from typing import cast

import click

from mpa_edge.cli import _registry
from mpa_edge.cli._options import echo, json_option, print_json, set_option, verbose_option
from mpa_edge.config import library
from mpa_edge.errors import MpaError


@click.command("show")
@click.argument("name")
@click.option("--kind", type=click.Choice(_registry.KINDS), help="Where several things have the same name.")
@set_option
@json_option
@verbose_option
def command(name: str, kind: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what NAME is: the file with its comments, or with --json all values, defaults filled in.

    NAME may be the path of your own file; its kind is recognized by its keys.

    \b
    Examples:
      $ mpa-edge show minicharts
      $ mpa-edge show jetson
      $ mpa-edge show minicharts --json --set level.rank=8
      $ mpa-edge show minicharts --kind tasks
    """
    kinds = [_registry.file_kind(name)] if library.is_path(name) else _registry.kinds_of(name)
    chosen = kind or kinds[0]
    if chosen not in kinds:
        raise MpaError(f"'{name}' is not in {chosen}: it is in {', '.join(kinds)}, use --kind {kinds[0]}")
    if overrides and chosen == _registry.FAMILIES:
        raise MpaError(f"--set changes files only, and '{name}' is in {chosen}: leave --set out")
    if len(kinds) > 1 and not kind:
        echo(f"(this is from {chosen}; --kind {kinds[1]} shows the other '{name}')", err=True)
    if chosen == _registry.FAMILIES:
        item = _registry.families()[name]
        values = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
        plain = json.loads(json.dumps(values, default=lambda value: getattr(value, "__name__", str(value))))
        if as_json:
            return print_json(plain)
        for key, value in plain.items():
            echo(f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
        return None
    file_kind = cast(library.Kind, chosen)
    if as_json or overrides:
        return print_json(library.load(file_kind, name, overrides))
    return echo(library.find(file_kind, name).read_text(encoding="utf-8"), nl=False)
