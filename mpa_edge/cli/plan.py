"""Estimate disk, memory, hours and cost of a recipe before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from mpa_edge.cli._options import json_option, print_json, set_option, verbose_option
from mpa_edge.config import library

if TYPE_CHECKING:
    from mpa_edge.planning.estimate import MachinePlan, Plan
    from mpa_edge.planning.model_specs import ImageTokens, ModelSpec

MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86_400.0
STAGES = ("annotate", "identify", "level", "merge", "evaluate")
NOTE = (
    "Estimates: efficiencies were measured on a CPU only, so expect up to a factor of two on a GPU. "
    "--json lists all assumptions and sources."
)


def duration(seconds: float) -> str:
    """A time that can be read at a glance.

    >>> duration(4.2), duration(90), duration(8000), duration(300000)
    ('4 s', '1.5 min', '2.2 h', '3.5 d')
    """
    if seconds < MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < HOUR_S:
        return f"{seconds / MINUTE_S:.1f} min"
    return f"{seconds / HOUR_S:.1f} h" if seconds < DAY_S else f"{seconds / DAY_S:.1f} d"


def short(value: float) -> str:
    """Three digits and a prefix.

    >>> short(8_291_375_616), short(48), short(2_793_088)
    ('8.29 G', '48', '2.79 M')
    """
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


def table(machines: Sequence[MachinePlan]) -> list[str]:
    """One line a machine, then the prices with their sources."""
    rows: list[tuple[str, ...]] = [("device", "memory", *STAGES, "total", "cost")]
    for one in machines:
        times = (duration(one.stages[name].seconds) if name in one.stages else "-" for name in STAGES)
        cost = "-" if one.usd is None else f"{one.usd:.2f} USD"
        total = duration(one.seconds) if one.fits else f"too small: {short(one.machine.device.memory_bytes)}B"
        rows.append((one.machine.name, f"{short(one.memory_bytes)}B", *times, total, cost))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    prices = filter(None, dict.fromkeys(one.machine.device.price for one in machines))
    return lines + [f"{one.usd_per_hour:.2f} USD an hour: {one.offer}, {one.source}, {one.date}" for one in prices]


def lines(plan: Plan) -> list[str]:
    """The plan as text."""
    made = plan.counts
    asked = f"{made.asked:.0f} annotations, {made.verified:.0f} verified, {made.gap:.0f} in the gap"

    def model(spec: ModelSpec, image: ImageTokens) -> str:
        return f"{spec.reference}, {short(spec.shapes.parameters)} parameters, {image.tokens:.0f} tokens an image"

    return [
        f"{plan.recipe.name}: {plan.images.n} images ({plan.images.source})",
        f"teacher  {model(plan.teacher, plan.teacher_image)}",
        f"student  {model(plan.student, plan.student_image)}, {short(plan.tuned.parameters)} trained",
        f"work     {asked}, {made.steps:.0f} of at most {made.steps_at_most:.0f} steps, {made.questions} questions",
        f"disk     {short(plan.disk_bytes)}B",
        "",
        *table(plan.machines),
        "",
        NOTE,
    ]


@click.command("plan")
@click.argument("recipe")
@click.option("--images", metavar="DIR|N", help="Folder of images, or how many there will be.")
@click.option("--device", "devices", multiple=True, metavar="NAME", help="h100, a10, ...; here: this CPU, measured.")
@click.option("--price", type=click.FloatRange(min=0, min_open=True), metavar="USD", help="Your price per hour.")
@click.option("--assume", multiple=True, metavar="NAME=VALUE", help="Change an assumption, e.g. gap=0.3.")
@set_option
@json_option
@verbose_option
def command(
    recipe: str,
    images: str | None,
    devices: tuple[str, ...],
    price: float | None,
    assume: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Estimate disk, memory, hours and cost of RECIPE, at public list prices.

    Nothing is loaded or downloaded. The sizes of hub models come from a table; for any other model, put its config.json
    and preprocessor_config.json into a folder and name that folder.

    \b
    Examples:
      $ mpa-edge plan minicharts
      $ mpa-edge plan charts-served --images charts/ --device h100 --device a10
      $ mpa-edge plan charts-served --images 10000 --device a100 --price 1.50 --assume gap=0.3
    """
    from mpa_edge.planning.estimate import as_document, machines, make_plan

    asked = library.load_recipe(recipe, overrides)
    plan = make_plan(asked, images, lambda: machines(devices, asked.threads, price), assume)
    if as_json:
        print_json(as_document(plan))
        return
    for line in lines(plan):
        click.echo(line)
