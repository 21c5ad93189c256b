"""Disk, memory, hours and cost of a recipe, before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mpa_edge.cli._options import json_option, print_json, set_option, verbose_option
from mpa_edge.config import library

if TYPE_CHECKING:
    from mpa_edge.planning.counts import Figure
    from mpa_edge.planning.estimate import MachinePlan
    from mpa_edge.planning.model_specs import KnownModel
    from mpa_edge.planning.plan import Plan

MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86_400.0
STAGES = ("annotate", "identify", "level", "merge", "evaluate")
NOTE = (
    "Estimates. What share of its peak a device reaches was measured on a CPU only; for a GPU it is a planning value, "
    "so expect up to a factor of two. --explain shows every formula, assumption and price."
)
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


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
    """Three digits, a blank and a letter for its size.

    >>> short(8_291_375_616), short(48), short(2_793_088)
    ('8.29 G', '48 ', '2.79 M')
    """
    for size, letter in UNITS:
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g} "


def lines(plan: Plan) -> list[str]:
    """The plan for people."""
    work, made = plan.work, plan.work.counts
    asked = f"{made.asked:.0f} annotations, {made.verified:.0f} verified, {made.gap:.0f} in the gap"
    trained = short(work.tuned.parameters)
    return [
        f"{plan.recipe.name}: {plan.pictures.n} images ({plan.pictures.source})",
        f"teacher  {_model(work.teacher)}, {work.teacher_sees.tokens:.0f} tokens a picture",
        f"student  {_model(work.student)}, {work.student_sees.tokens:.0f} tokens a picture, {trained} trained",
        f"work     {asked}, {made.steps:.0f} of at most {made.steps_at_most:.0f} steps, {made.questions} questions",
        f"disk     {short(plan.disk_bytes)}B",
        "",
        *table(plan.machines),
        "",
        NOTE,
    ]


def _model(model: KnownModel) -> str:
    return f"{model.reference}, {short(model.shapes.parameters)} parameters"


def table(machines: tuple[MachinePlan, ...]) -> list[str]:
    """One line a machine."""
    rows = [("device", "memory", *STAGES, "total", "cost"), *map(_row, machines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(plan: MachinePlan) -> tuple[str, ...]:
    """A machine that is too small says how much it lacks."""
    took = {stage.stage: duration(stage.seconds) for stage in plan.stages}
    cells = (plan.machine.name, f"{short(plan.memory_bytes)}B", *(took.get(stage, "-") for stage in STAGES))
    if not plan.fits:
        return *cells, f"too small: {short(plan.machine.device.memory_bytes)}B", "-"
    return *cells, duration(plan.seconds), "-" if plan.usd is None else f"{plan.usd:.2f} USD"


def explained(plan: Plan) -> list[str]:
    """Every assumption and every figure with its formula."""
    from mpa_edge.planning.estimate import figures_of
    from mpa_edge.planning.plan import common_figures

    out = ["", "assumptions (--assume NAME=VALUE changes one)"]
    out += [f"  {name} = {factor.value:g}  ({factor.where})" for name, factor in plan.work.assumed.factors.items()]
    out += ["", "on every machine", *map(_figure, common_figures(plan))]
    for machine in plan.machines:
        device = machine.machine.device
        out += ["", f"{machine.machine.name}: {device.title}"]
        peaks = f"flops = {short(device.flops)}FLOP/s, memory_bandwidth = {short(device.memory_bandwidth)}B/s"
        out.append(f"  {peaks}  ({device.source})")
        found = machine.machine.efficiency
        out += [f"  {name} = {factor.value:g}  ({factor.where})" for name, factor in found]
        out += map(_figure, figures_of(machine))
    return out


def _figure(figure: Figure) -> str:
    value = f"{short(figure.value)}{figure.unit}" if figure.unit == "bytes" else f"{figure.value:.4g} {figure.unit}"
    return f"  {figure.name} = {value}  <-  {figure.formula}"


@click.command("plan")
@click.argument("recipe")
@click.option("--images", metavar="DIR|N", help="Folder of images, or how many there will be.")
@click.option("--device", "devices", multiple=True, metavar="NAME", help="h100, a10, ...; here: this CPU, measured.")
@click.option("--price", type=click.FloatRange(min=0, min_open=True), metavar="USD", help="Your price of an hour.")
@click.option("--assume", multiple=True, metavar="NAME=VALUE", help="Change an assumption, e.g. gap=0.3.")
@click.option("--explain", is_flag=True, help="Show the formula of every figure.")
@set_option
@json_option
@verbose_option
def command(
    recipe: str,
    images: str | None,
    devices: tuple[str, ...],
    price: float | None,
    assume: tuple[str, ...],
    explain: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Estimate what RECIPE will take: disk, memory of each stage, hours, and cost at public list prices.

    Nothing is loaded or fetched. Models of a hub are known by the sizes in their config.json; for one that is not, put
    its config.json and preprocessor_config.json into a folder and name that folder.

    \b
    Examples:
      $ mpa-edge plan minicharts
      $ mpa-edge plan charts-served --images charts/ --device h100 --device a10
      $ mpa-edge plan charts-served --images 10000 --device a100 --price 1.50 --assume gap=0.3 --explain
      $ mpa-edge plan minicharts --device cpu --json
    """
    from mpa_edge.planning.plan import as_document, machines, make_plan

    asked = library.load_recipe(recipe, overrides)
    made = make_plan(asked, images, lambda: machines(devices, asked.threads, price), assume)
    if as_json:
        print_json(as_document(made, explain))
        return
    for line in [*lines(made), *(explained(made) if explain else [])]:
        click.echo(line)
