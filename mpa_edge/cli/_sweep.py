"""A benchmark of each setting of a sweep, one after the other, and the document that compares them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.cli._bench import DEFAULT_TARGET, aligned_run, chosen_schemes, exported, open_run
from mpa_edge.errors import MpaError
from mpa_edge.progress import say

if TYPE_CHECKING:
    from mpa_edge.bench.host.measurement import Bench, Reach
    from mpa_edge.bench.results.records import Sweep
    from mpa_edge.bench.results.sweep import Setting
    from mpa_edge.config.scheme import Scheme
    from mpa_edge.config.target import Target
    from mpa_edge.exporters.source import Source


def sweep(text: str, asked: dict[str, Any], reach: Reach, fresh: bool) -> tuple[Sweep, Path]:
    """Measure every setting that is possible; the document and its path. What was measured before stays."""
    from mpa_edge.bench.host.measurement import FOLDER
    from mpa_edge.bench.host.pipeline import run_bench
    from mpa_edge.bench.report.read import read_bench
    from mpa_edge.bench.results.records import SWEEP
    from mpa_edge.bench.results.sweep import axes_of, point_of, settings, slug, sweep_of
    from mpa_edge.config.library import load_target
    from mpa_edge.runs.files import write_json

    source, target = open_run(asked["run"]), load_target(asked["target"] or DEFAULT_TARGET)
    axes = axes_of(text)
    wanted = settings(axes, target, device_cores(reach) if "threads" in axes else 1)
    points = []
    for number, setting in enumerate(wanted, start=1):
        say(f"setting {number} of {len(wanted)}: {slug(setting)}")
        points += [
            point_of(setting, read_bench(run_bench(bench, fresh)).report)
            for bench in benches_of(source, target, setting, asked, reach)
        ]
    if not points:
        raise MpaError("no setting of this sweep is possible for this model: name other values with --sweep AXIS=A:B")
    path = aligned_run(source)[0] / FOLDER / target.name / SWEEP
    made = sweep_of(target.name, points)
    write_json(path, made)
    return made, path


def device_cores(reach: Reach) -> int:
    """Usable cores of the device."""
    from mpa_edge.bench.transports.connect import connect

    with closing(connect(reach.via, root=reach.root)) as transport:
        # nproc takes these for the number of cores
        done = transport.run("env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc", timeout_s=30.0)
    text = done.stdout.decode(errors="replace").strip()
    if done.rc or not text.isdecimal():
        raise MpaError(f"{transport.name} does not say how many cores it has: name them with --sweep threads=1:2")
    return int(text)


def benches_of(
    source: Source, target: Target, setting: Setting, asked: dict[str, Any], reach: Reach
) -> Iterable[Bench]:
    """The benchmark of a setting; none, with the reason said, where the model cannot be exported like that."""
    from mpa_edge.bench.host.measurement import Bench, Effort
    from mpa_edge.bench.results.sweep import slug

    names = (str(setting["scheme"]),) if "scheme" in setting else tuple(asked["schemes"][:1])
    try:
        scheme, artifact = export_for(source, target, setting, names)
    except MpaError as error:
        say(f"{slug(setting)}: left out ({error})")
        return
    folder, recipe = aligned_run(source)
    yield Bench(
        run=folder,
        recipe=recipe,
        target=target,
        scheme=scheme.name,
        artifact=artifact,
        base=None,
        reach=reach,
        effort=Effort(asked["questions"], asked["timed"], asked["repetitions"]),
        threads=int(setting.get("threads") or asked["threads"] or 0) or None,
        label=f"sweep/{slug(setting)}",
    )


def export_for(source: Source, target: Target, setting: Setting, names: tuple[str, ...]) -> tuple[Scheme, Path]:
    """The export of a setting: one for each image budget and scheme."""
    from mpa_edge.bench.host.measurement import FOLDER
    from mpa_edge.bench.results.sweep import budget_for

    if "image_budget" not in setting:
        scheme = chosen_schemes(source, names, target)[0]
        return scheme, exported(source, scheme, target)
    tiles = int(setting["image_budget"])
    narrow = target.model_copy(update={"image": budget_for(target, tiles)})
    own = replace(source, exports=aligned_run(source)[0] / FOLDER / f"tiles-{tiles}")
    scheme = chosen_schemes(own, names, narrow)[0]
    return scheme, exported(own, scheme, narrow)
