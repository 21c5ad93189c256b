"""What bundle and bench share: from names on the command line to what is measured, with the exports that it needs."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpa_edge.bench.measurement import FOLDER, Bench, Effort, Reach
from mpa_edge.cli._options import ACCELERATOR, echo
from mpa_edge.config.accelerator import AUTO
from mpa_edge.errors import MpaError
from mpa_edge.progress import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpa_edge.bench.results.records import Sweep
    from mpa_edge.config.recipe import Recipe
    from mpa_edge.config.scheme import Scheme
    from mpa_edge.config.target import Target
    from mpa_edge.exporters.publish.manifest import ExportManifest
    from mpa_edge.exporters.source import Source

DEFAULT_TARGET = "cpu"


def bench_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """RUN, and what is measured on which device."""
    default = Effort()

    def number(name: str, default: int | None, text: str, least: int = 1) -> Callable[..., Any]:
        kind = click.IntRange(min=least)
        return click.option(name, type=kind, default=default, show_default=True, metavar="N", help=text)

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
        number("--questions", default.questions, "Asked once each, for the accuracy."),
        number("--timed", default.timed, "Of these, asked repeatedly for the timing."),
        number("--repetitions", default.repetitions, "Of each timed question.", least=5),
        click.option("--no-base", is_flag=True, help="Do not time base in the same scheme as well."),
        number("--threads", None, "Of the runtime.  [default: the target's]"),
        click.option(
            "--accelerator",
            type=ACCELERATOR,
            metavar="NAME",
            default=AUTO,
            help="What must compute: cuda, tensorrt, cpu ...  [default: auto, the target's first that is there]",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def open_run(run: str, target: str | None) -> tuple[Source, Target]:
    """A run and a target by name. MpaError where the run has no base to compare with."""
    from mpa_edge.config.library import load_target
    from mpa_edge.exporters.source import open_source

    if not Path(run).expanduser().is_dir():
        raise MpaError(f"no folder '{run}': name a run that mpa-edge align made")
    source = open_source(run)
    aligned_run(source)
    return source, load_target(target or DEFAULT_TARGET)


def aligned_run(source: Source) -> tuple[Path, Recipe]:
    """Folder and recipe of a run. MpaError where the source is a plain checkpoint."""
    if source.run is None or source.recipe is None:
        raise MpaError(f"{source.name} is not a run, so there is no gain to measure: name a folder that align made")
    return source.run, source.recipe


def open_benches(asked: dict[str, Any], reach: Reach | None = None) -> list[Bench]:
    """One benchmark for each named scheme; where none is named, one of the target's first that is exported or passes.

    Exports that are missing, also of base in the same scheme, are made now.
    """
    from mpa_edge.exporters.pipeline import Order, choose_schemes, run_export

    source, target = open_run(asked["run"], asked["target"])
    schemes = choose_schemes(source, asked["schemes"], target)
    if asked["schemes"]:
        return [bench_of(source, target, scheme, exported(source, scheme, target), asked, reach) for scheme in schemes]
    made = [one for one in schemes if is_current(source, source.exports / one.name)]
    artifact = source.exports / made[0].name if made else run_export(Order(source, schemes, target, first=True))[0]
    scheme = next(one for one in schemes if one.name == artifact.name)
    return [bench_of(source, target, scheme, artifact, asked, reach)]


def bench_of(
    source: Source,
    target: Target,
    scheme: Scheme,
    artifact: Path,
    asked: dict[str, Any],
    reach: Reach | None,
    label: str | None = None,
) -> Bench:
    """The benchmark of an export; `label`: folder of its results, None: the scheme's name."""
    from mpa_edge.exporters.publish.manifest import finished

    run, recipe = aligned_run(source)
    return Bench(
        run=run,
        recipe=recipe,
        target=target,
        scheme=scheme.name,
        artifact=artifact,
        base=None if asked["no_base"] else exported_base(source, artifact, target),
        reach=reach or Reach(),
        effort=Effort(asked["questions"], asked["timed"], asked["repetitions"]),
        threads=asked["threads"],
        accelerator=asked["accelerator"],
        label=label,
        refused=tuple(f"{one.scheme}: {one.reason}" for one in finished(artifact).refused),
    )


def exported(source: Source, scheme: Scheme, target: Target) -> Path:
    """The existing export of the run, whatever target it was made for; else one made now for this target.

    One whose weights or files have changed since is made again as it was: no other model is judged in the run's name.
    """
    from mpa_edge.exporters.pipeline import Order, run_export
    from mpa_edge.exporters.publish.manifest import read_export_manifest

    folder = source.exports / scheme.name
    if is_current(source, folder):
        return folder
    manifest = read_export_manifest(folder)
    if manifest is None:
        return run_export(Order(source, (scheme,), target))[0]
    say(f"{scheme.name}: the model has changed since this export")
    return export_like(manifest, source, target)


def is_current(source: Source, folder: Path) -> bool:
    """Whether a folder holds an undamaged export of the checkpoint as it is now."""
    from mpa_edge.exporters.publish.manifest import is_exported, read_export_manifest

    manifest = read_export_manifest(folder)
    return manifest is not None and is_exported(folder, manifest.inputs | {"checkpoint": source.fingerprint})


def exported_base(source: Source, artifact: Path, target: Target) -> Path:
    """The student before alignment, exported as the artifact was: same scheme, image budget and context."""
    from mpa_edge.exporters.publish.manifest import finished
    from mpa_edge.exporters.source import open_source

    run, recipe = aligned_run(source)
    base = open_source(recipe.student, str(run / FOLDER / "base"))
    return export_like(finished(artifact), replace(base, name=f"{source.name}-base", recipe=recipe), target)


def export_like(manifest: ExportManifest, source: Source, target: Target) -> Path:
    """An export of a source in the scheme and for the target of another export; `target`: the benchmark's."""
    from mpa_edge.config.library import load_target
    from mpa_edge.config.scheme import Scheme
    from mpa_edge.exporters.pipeline import Order, run_export

    made_for = target if manifest.target == target.name else None
    if manifest.target and made_for is None:
        made_for = load_target(manifest.target)
    scheme = Scheme.model_validate(manifest.scheme, strict=False)
    return run_export(Order(source, (scheme,), made_for))[0]


def show_plan(asked: dict[str, Any], via: str = "hand") -> None:
    """Print what would be measured; nothing is exported, sent or asked."""
    from mpa_edge.exporters.pipeline import choose_schemes

    source, target = open_run(asked["run"], asked["target"])
    echo(f"run        {source.run}")
    echo(f"target     {target.name} by {via}")
    echo(f"computes   {', '.join(target.accelerators) if asked['accelerator'] == AUTO else asked['accelerator']}")
    schemes = choose_schemes(source, asked["schemes"], target)
    made = [scheme for scheme in schemes if is_current(source, source.exports / scheme.name)]
    if asked["schemes"] or made:
        for scheme in schemes if asked["schemes"] else made[:1]:
            echo(f"scheme     {scheme.name} ({'exported' if scheme in made else 'to be exported'})")
    else:
        echo(f"scheme     the first of {', '.join(scheme.name for scheme in schemes)} that passes (to be exported)")
    echo(f"accuracy   {asked['questions']} questions, once each")
    beside = "" if asked["no_base"] else ", alternating with base in the same scheme"
    echo(f"timing     {asked['timed']} of them, {asked['repetitions']} times each{beside}")


def sweep(axes_text: str, asked: dict[str, Any], reach: Reach, fresh: bool) -> tuple[Sweep, Path]:
    """Measure every possible setting, one after the other; the document that compares them, and its path."""
    from mpa_edge.bench.host.pipeline import run_bench
    from mpa_edge.bench.report.read import read_bench
    from mpa_edge.bench.results.records import SWEEP
    from mpa_edge.bench.results.sweep import axes_of, point_of, settings, slug, sweep_of
    from mpa_edge.runs.files import write_json

    source, target = open_run(asked["run"], asked["target"])
    axes = axes_of(axes_text)
    wanted = settings(axes, target, device_cores(reach) if "threads" in axes else 1)
    points = []
    for number, setting in enumerate(wanted, start=1):
        name = slug(setting)
        say(f"setting {number} of {len(wanted)}: {name}")
        try:
            scheme, artifact = export_for(source, target, setting, asked["schemes"])
        except MpaError as error:
            say(f"{name}: skipped ({error})")
            continue
        own = asked | {"no_base": True, "threads": setting.get("threads") or asked["threads"]}
        bench = bench_of(source, target, scheme, artifact, own, reach, label=f"sweep/{name}")
        report = read_bench(run_bench(bench, fresh)).report
        points.append(point_of(setting, report))
    if not points:
        raise MpaError("no setting of this sweep is possible for this model: name other values with --sweep AXIS=A:B")
    path = aligned_run(source)[0] / FOLDER / target.name / SWEEP
    made = sweep_of(target.name, points, report.truth)
    write_json(path, made)
    return made, path


def device_cores(reach: Reach) -> int:
    """Usable cores of the device."""
    from mpa_edge.bench.transports.connect import connect

    with closing(connect(reach.via, root=reach.root)) as transport:
        # nproc takes these for the number of cores
        done = transport.run("env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc", timeout_s=30.0)
    text = done.stdout.decode(errors="replace").strip()
    if done.rc or not text.isdecimal() or not 1 <= len(text) <= 4:
        raise MpaError(f"{transport.name} does not report how many cores it has: name them with --sweep threads=1:2")
    return int(text)


def export_for(
    source: Source, target: Target, setting: dict[str, Any], schemes: tuple[str, ...]
) -> tuple[Scheme, Path]:
    """Scheme and export of a setting; each image budget has exports of its own. MpaError where it is not possible."""
    from mpa_edge.bench.results.sweep import budget_for
    from mpa_edge.exporters.pipeline import choose_schemes

    if tiles := setting.get("image_budget"):
        target = target.model_copy(update={"image": budget_for(target, tiles)})
        source = replace(source, exports=aligned_run(source)[0] / FOLDER / f"tiles-{tiles}")
    scheme = choose_schemes(source, (setting["scheme"],) if "scheme" in setting else schemes[:1], target)[0]
    return scheme, exported(source, scheme, target)
