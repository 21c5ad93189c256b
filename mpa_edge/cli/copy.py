"""Copy a recipe, a target, a scheme or a task to a file of your own, to edit it."""

from __future__ import annotations

import re
from pathlib import Path

import click

from mpa_edge.cli import _registry
from mpa_edge.cli._options import verbose_option
from mpa_edge.config import library
from mpa_edge.errors import MpaError
from mpa_edge.runs import files


@click.command("copy")
@click.argument("name")
@click.argument("dest", metavar="DEST.yaml")
@click.option("--force", is_flag=True, help="Replace DEST.yaml where it exists.")
@verbose_option
def command(name: str, dest: str, force: bool) -> None:
    """Copy the recipe, target, scheme or task NAME to DEST.yaml with its comments, named after the file.

    \b
    Examples:
      $ mpa-edge copy minicharts my-charts.yaml
      $ mpa-edge check my-charts.yaml
      $ mpa-edge copy jetson my-robot.yaml
      $ mpa-edge copy textvqa my-task.yaml
    """
    source, target = library.find(_registry.file_kind(name), name), Path(dest)
    if target.suffix not in (".yaml", ".yml"):
        raise MpaError(f"'{dest}' does not end in .yaml: these files are YAML, write {target.stem}.yaml")
    if target.exists() and not force:
        raise MpaError(f"{target} exists: choose another name, or replace it with --force")
    new_name = re.sub(r"[^a-z0-9._]+", "-", target.stem.lower()).strip("-._")[:64] or "mine"
    text = re.sub(r"(?m)^name:.*$", f"name: {new_name}", source.read_text(encoding="utf-8"), count=1)
    files.make_folder(target.parent)
    files.write_bytes(target, text.encode())
    click.echo(str(target))
