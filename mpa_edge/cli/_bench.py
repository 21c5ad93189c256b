"""What bundle and bench share: from names on the command line to what is measured, with the exports that it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpa_edge.errors import MpaError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mpa_edge.bench.host.measurement import Bench, Reach
    from mpa_edge.config.recipe import Recipe
    from mpa_edge.config.scheme import Scheme
    from mpa_edge.config.target import Target
    from mpa_edge.exporters.publish.manifest import ExportManifest
    from mpa_edge.exporters.source import Source

DEFAULT_TARGET = "cpu"


def bench_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """RUN, and what is measured on which device."""
    from mpa_edge.bench.host.measurement import QUESTIONS, REPETITIONS, TIMED

    count = click.IntRange(min=1)
    options = (
        click.argument("run", metavar="RUN"),
        click.option("--target", metavar="TARGET", help="Device or class of devices.  [default: cpu]"),
        click.option(
            "--as",
            "schemes",
            multiple=True,
            metavar="SCHEME",
            help="Scheme; may be given repeatedly.  [default: the target's first that fits]",
        ),
        click.option(
            "--questions", type=count, default=QUESTIONS, show_default=True, metavar="N", help="For the accuracy."
        ),
        click.option(
            "--timed", type=count, default=TIMED, show_default=True, metavar="N", help="Of them, asked again and again."
        ),
        click.option(
            "--repetitions",
            type=click.IntRange(min=5),
            default=REPETITIONS,
            show_default=True,
            metavar="N",
            help="Of each timed question.",
        ),
        click.option("--no-base", is_flag=True, help="Do not time base in the same scheme beside it."),
        click.option("--threads", type=count, metavar="N", help="Of the runtime.  [default: what the target says]"),
    )
    for option in reversed(options):
        function = option(function)
    return function


def open_benches(
    run: str,
    target: str | None,
    schemes: Sequence[str],
    questions: int,
    timed: int,
    repetitions: int,
    no_base: bool,
    threads: int | None,
    reach: Reach | None = None,
) -> list[Bench]:
    """One benchmark for each scheme. What is not exported yet is exported now, and base in the same scheme as well."""
    from mpa_edge.bench.host.measurement import Bench, Effort, Reach
    from mpa_edge.config.library import load_target

    source, chosen = open_run(run), load_target(target or DEFAULT_TARGET)
    effort = Effort(questions, timed, repetitions)
    made = []
    for scheme in chosen_schemes(source, schemes, chosen):
        artifact = exported(source, scheme, chosen)
        base = None if no_base else exported_base(source, artifact, chosen)
        folder, recipe = aligned_run(source)
        made.append(
            Bench(
                run=folder,
                recipe=recipe,
                target=chosen,
                scheme=scheme.name,
                artifact=artifact,
                base=base,
                reach=reach or Reach(),
                effort=effort,
                threads=threads,
            )
        )
    return made


def open_run(run: str) -> Source:
    """A run with a base to compare with. MpaError where it is none."""
    from mpa_edge.exporters.source import open_source

    if not Path(run).expanduser().is_dir():
        raise MpaError(f"no folder '{run}': name a run that mpa-edge align made")
    source = open_source(run)
    aligned_run(source)
    return source


def aligned_run(source: Source) -> tuple[Path, Recipe]:
    """Folder and recipe of a run. MpaError where the source is a plain checkpoint."""
    if source.run is None or source.recipe is None:
        raise MpaError(
            f"{source.name} is no run, so there is no gain to look for: name a folder that mpa-edge align made"
        )
    return source.run, source.recipe


def chosen_schemes(source: Source, names: Sequence[str], target: Target) -> tuple[Scheme, ...]:
    """Those that are named, else the target's first that this model can take."""
    from mpa_edge.exporters.pipeline import choose_schemes

    return choose_schemes(source, names, target)


def exported(source: Source, scheme: Scheme, target: Target) -> Path:
    """An export of the run as it lies there, else made now for this target."""
    from mpa_edge.exporters.pipeline import Order, run_export
    from mpa_edge.exporters.publish.manifest import read_export_manifest

    folder = source.exports / scheme.name
    if read_export_manifest(folder) is not None:
        return folder
    return run_export(Order(source, (scheme,), target))[0]


def exported_base(source: Source, artifact: Path, target: Target) -> Path:
    """The student as it was before, exported as the artifact was: same scheme, same image budget, same context."""
    from mpa_edge.bench.host.measurement import FOLDER
    from mpa_edge.config.scheme import Scheme
    from mpa_edge.exporters.pipeline import Order, finished, run_export
    from mpa_edge.exporters.source import open_source

    manifest = finished(artifact)
    folder, recipe = aligned_run(source)
    before = open_source(recipe.student, str(folder / FOLDER / "base"))
    before = replace(before, name=f"{source.name}-base", recipe=recipe)
    scheme = Scheme.model_validate(manifest.scheme, strict=False)
    return run_export(Order(before, (scheme,), target_of(manifest, target)))[0]


def target_of(manifest: ExportManifest, target: Target) -> Target | None:
    """The target that an export was made for."""
    from mpa_edge.config.library import load_target

    if manifest.target is None or manifest.target == target.name:
        return None if manifest.target is None else target
    return load_target(manifest.target)


def show_plan(asked: dict[str, Any], via: str = "hand") -> None:
    """What would be measured; nothing is exported, sent or asked."""
    from mpa_edge.config.library import load_target

    source, target = open_run(asked["run"]), load_target(asked["target"] or DEFAULT_TARGET)
    schemes = [scheme.name for scheme in chosen_schemes(source, asked["schemes"], target)]
    click.echo(f"run        {source.run}")
    click.echo(f"target     {target.name} by {via}")
    for name in schemes:
        made = "exported" if (source.exports / name / "manifest.json").is_file() else "to be exported"
        click.echo(f"scheme     {name} ({made})")
    click.echo(f"accuracy   {asked['questions']} questions, once each")
    beside = "" if asked["no_base"] else ", in turns with base in the same scheme"
    click.echo(f"timing     {asked['timed']} of them, {asked['repetitions']} times each{beside}")
