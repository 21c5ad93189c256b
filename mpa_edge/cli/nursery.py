"""Draw images of the built-in world."""

from __future__ import annotations

import click

from mpa_edge.cli._options import verbose_option


@click.group("nursery")
def command() -> None:
    """The built-in world: drawn images to try things on.

    \b
    Examples:
      $ mpa-edge nursery render charts --n 20
    """


@command.command("render")
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--n", type=click.IntRange(1, 10_000_000), default=500, show_default=True, help="Number of images.")
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="Seed of the generator.")
@click.option(
    "--style",
    type=click.Choice(("target", "plain", "mixed")),
    default="target",
    show_default=True,
    help="target is the style on which the built-in student is weak.",
)
@click.option("--with-answers", is_flag=True, help="Also write answers.jsonl: questions with the generator's answers.")
@verbose_option
def render_command(folder: str, n: int, seed: int, style: str, with_answers: bool) -> None:
    """Draw N minicharts (bar charts, signs, shapes) as PNG files into FOLDER.

    \b
    Examples:
      $ mpa-edge nursery render charts --n 20 --seed 7
      $ mpa-edge nursery render questions --n 20 --style plain --with-answers
    """
    from pathlib import Path
    from typing import cast

    from mpa_edge.nursery.render import ALL_ANSWERS, FileStyle, render

    render(Path(folder), n, seed, cast(FileStyle, style), ALL_ANSWERS if with_answers else 0)
    click.echo(f"{n} images in {folder}")
