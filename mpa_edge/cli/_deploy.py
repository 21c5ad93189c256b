"""Exports the student where a recipe wants it to answer as it is deployed: stages may not call exporters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpa_edge.exporters.pipeline import Order
    from mpa_edge.stages.run import Run


def before_stages(run: Run, names: Sequence[str]) -> dict[str, Callable[[Run], None]]:
    """What is to be done before a stage: nothing, or the student's export before identify.

    MpaError where the target or the scheme is not possible for this student: said before the teacher works for hours.
    """
    from mpa_edge.stages.deployed import is_deployed

    if "identify" not in names or not is_deployed(run):
        return {}
    order = order_of(run)
    return {"identify": lambda run: deploy(run, order)}


def order_of(run: Run) -> Order:
    """The export that the recipe asks for."""
    from mpa_edge.config.library import load_target
    from mpa_edge.exporters.pipeline import Order, choose_schemes
    from mpa_edge.exporters.source import open_source
    from mpa_edge.stages.deployed import exports_folder

    config = run.recipe.identify
    target = load_target(config.target or "")
    source = open_source(run.recipe.student, str(exports_folder(run)))
    source = replace(source, name=f"{run.recipe.name}-student", recipe=run.recipe)
    schemes = choose_schemes(source, (config.scheme,) if config.scheme else (), target)
    return Order(source, schemes, target, run.recipe.threads)


def deploy(run: Run, order: Order) -> None:
    """Export the student, unless that is done, and note which export it is."""
    from mpa_edge.exporters.pipeline import run_export
    from mpa_edge.stages.deployed import note

    note(run, run_export(order)[0])
