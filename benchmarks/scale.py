"""annotate and identify over very many pictures, with models that answer from a function: speed, memory, resume.

    python benchmarks/scale.py --images 100000 --engine local --json
    python benchmarks/scale.py --images 1000000 --engine ray --folder /tmp/scale --json
    python benchmarks/scale.py --small 1000 --large 100000 --json
    python benchmarks/scale.py --compare 20000 --json

--images: the driver is killed (SIGKILL) when 60 % of annotate's shards are written, and the same command is started
again. `rows_per_s` is rows over the wall seconds of both attempts, both stages, processes starting and Ray's own start
included. `resume_s` is from the second start of the program until a model is asked. `rows_redone` is what the teacher
wrote more often than once. `driver_peak_rss_bytes` is VmHWM of the larger driver. The pictures are names of a few
drawings (scale_pictures.py), the models sleep a thousandth of what real ones take (scale_models.py). With --folder
everything stays there, and a measurement that was broken off goes on.

--small/--large: each size runs in a process of its own on the local engine, with files of their own and no latency: all
shards, then the last one of annotate is thrown away and the stage started again. `resume_s` is from that start, in the
same process, until the teacher is asked (listing the pictures, finding what is done).

--compare: the same pictures on both engines with one worker; Ray's own start, measured apart, is taken off.
Not measured: models, and what pictures of a real size take while they are open (mpa_edge/images/cache.py bounds that).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import scale_models
from scale_pictures import draw, link, remember

MEGA = 1_000_000
KILL_AT = 0.6
LOOK_EVERY_S = 0.1
SETTLED_S = 2.5  # files younger than the tick of a file system are read again by the next scan; a user's are older
KILLED = "killed.json"
PLACES = ("--folder", "--details")


@dataclass(frozen=True)
class Size:
    """What is run."""

    images: int
    engine: str
    actors: int
    shard_size: int

    @property
    def shards(self) -> int:
        """Parts of annotate."""
        return -(-self.images // self.shard_size)


# --- the driver: a process of its own ---------------------------------------------------------------------------------


def drive(size: Size, folder: Path) -> dict[str, Any]:
    """Both stages over the pictures of a folder, as `mpa-edge align` does them."""
    import mpa_edge.vlm

    mpa_edge.vlm.load = scale_models.Scripted  # type: ignore[assignment]
    from mpa_edge.engines.job import Engine
    from mpa_edge.runs.manifest import FOLDERS, read_manifest
    from mpa_edge.runs.memory import peak_rss_bytes
    from mpa_edge.stages.pipeline import run_stages
    from mpa_edge.stages.run import open_run

    values = {
        "images.render": "null",
        "annotate.shard_size": size.shard_size,
        "annotate.samples_per_image": 1,
        "engine.actors": size.actors,
        "engine.cpus_per_actor": 1.0 / size.actors,
        "device": "cpu",
    }
    overrides = [f"{key}={value}" for key, value in values.items()]
    run = open_run("minicharts", images=str(folder / "pictures"), out=str(folder / "run"), overrides=overrides)
    names = ("annotate", "identify")
    run_stages(replace(run, engine=Engine(size.engine)), names)  # type: ignore[arg-type]
    manifests = (read_manifest(folder / "run" / FOLDERS[name]) for name in names)
    return {
        "peak_rss_bytes": peak_rss_bytes(),
        "cpu_s": time.process_time(),
        "stage_s": {one.stage: one.seconds for one in manifests if one},
    }


def start(size: Size, folder: Path) -> subprocess.Popen[bytes]:
    """The driver; its own words go to stderr, what it found into a file."""
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", str(Path(here).parent))])
    env = os.environ | {scale_models.LOG_FOLDER: str(folder / "log"), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    numbers = [str(value) for value in (size.images, size.engine, size.actors, size.shard_size)]
    return subprocess.Popen([sys.executable, __file__, "--drive", *numbers, str(folder)], env=env, stdout=sys.stderr)


# --- the measurement --------------------------------------------------------------------------------------------------


def prepare(size: Size, folder: Path) -> None:
    """Pictures, and the list of an earlier scan; what is there is kept."""
    (folder / "log").mkdir(parents=True, exist_ok=True)
    if not (folder / "ready").is_file():
        click.echo(f"{size.images} names of pictures in {folder / 'pictures'}", err=True)
        link(folder / "pictures", size.images)
        remember(folder / "pictures", folder / "run" / ".images.jsonl", size.images)
        (folder / "ready").touch()


def peak_of(pid: int) -> int:
    """VmHWM of a process that runs, bytes; 0 where it is gone."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    return 0


def parts(folder: Path) -> int:
    """Shards of annotate that are written."""
    with suppress(FileNotFoundError):
        return sum(entry.name.startswith("part-") for entry in os.scandir(folder / "run" / "1-annotate"))
    return 0


def killed_in_the_middle(size: Size, folder: Path) -> dict[str, Any]:
    """The first attempt: killed at 60 % of annotate's shards."""
    began, process, peak = time.time(), start(size, folder), 0
    try:
        while parts(folder) < KILL_AT * size.shards:
            if process.poll() is not None:
                raise click.ClickException(f"the driver ended by itself with {process.returncode}")
            peak = max(peak, peak_of(process.pid))
            time.sleep(LOOK_EVERY_S)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = {"wall_s": time.time() - began, "peak_rss_bytes": peak, "parts": parts(folder)}
    (folder / KILLED).write_text(json.dumps(found))
    click.echo(f"killed at {found['parts']} of {size.shards} shards", err=True)
    return found


def finished(size: Size, folder: Path) -> dict[str, Any]:
    """The second attempt: the same command to the end. `resume_s` until a model is asked."""
    began = time.time()
    process = start(size, folder)
    if process.wait() != 0:
        raise click.ClickException(f"the driver ended with {process.returncode}; --folder {folder} goes on")
    wall_s = time.time() - began
    # actors of the killed driver may have lived a moment longer: they are not asked by this one
    asked = [at for at in map(min, filter(None, times(folder))) if at > began]
    found: dict[str, Any] = json.loads((folder / "driver.json").read_text())
    return found | {"wall_s": wall_s, "resume_s": min(asked) - began if asked else 0.0}


def batches(folder: Path) -> Iterator[tuple[float, str, str, int]]:
    """Every batch that a model was asked: when, who, what, how many."""
    for path in (folder / "log").iterdir():
        for line in path.read_text().splitlines():
            at, name, kind, n = line.split()
            yield float(at), name, kind, int(n)


def times(folder: Path) -> Iterator[list[float]]:
    """When each process was asked."""
    for path in (folder / "log").iterdir():
        yield [float(line.split()[0]) for line in path.read_text().splitlines()]


def ids(folder: Path, stage: str) -> tuple[int, int]:
    """(rows, different ids) of a stage."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    files = sorted((folder / "run" / stage).glob("part-*.parquet"))
    column = pa.chunked_array([pq.ParquetFile(path).read(["id"]).column("id").combine_chunks() for path in files])
    return len(column), pc.count_distinct(column).as_py()


def measured(size: Size, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what --json prints, everything else)."""
    prepare(size, folder)
    stored = folder / KILLED
    first = json.loads(stored.read_text()) if stored.is_file() else killed_in_the_middle(size, folder)
    second = finished(size, folder)
    rows, unique = ids(folder, "1-annotate")
    judged, judged_unique = ids(folder, "2-identify")
    if (judged, judged_unique) != (rows, unique):
        raise click.ClickException(f"identify has {judged} rows, {judged_unique} ids; annotate {rows}, {unique}")
    wrote = sum(n for _, name, kind, n in batches(folder) if (name, kind) == ("teacher", "wrote"))
    result = {
        "images": size.images,
        "rows": rows,
        "unique_ids": unique,
        "rows_per_s": rows / (first["wall_s"] + second["wall_s"]),
        "driver_peak_rss_bytes": max(first["peak_rss_bytes"], second["peak_rss_bytes"]),
        "resume_s": second["resume_s"],
        "rows_redone": wrote - size.images,
    }
    return result, {"size": size.__dict__, "first": first, "second": second, "machine": machine()}


def machine() -> dict[str, Any]:
    """Where this was."""
    import platform

    from mpa_edge.stages.run import cpu_name

    return {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}


@contextmanager
def place(folder: Path | None) -> Iterator[Path]:
    """The folder that was named, or a temporary one."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="scale-") as temporary:
        yield Path(temporary)


# --- one worker on either engine --------------------------------------------------------------------------------------


def compared(images: int, shard_size: int, rounds: int) -> dict[str, Any]:
    """Seconds of the stages on both engines with one worker, the best of some rounds each, taken in turns.

    The stages' own clocks do not run while Ray starts; `ray_start_s` is the rest of the wall seconds.
    """
    found: dict[str, list[dict[str, float]]] = {"local": [], "ray": []}
    for _ in range(rounds):
        for engine, runs in found.items():
            with place(None) as folder:
                size = Size(images, engine, 1, shard_size)
                prepare(size, folder)
                began = time.time()
                done = finished(size, folder)
                asked = sorted(at for at, *_ in batches(folder))
                runs.append({"wall_s": done["wall_s"], "until_asked_s": asked[0] - began, "work_s": working_s(folder)})
                click.echo(f"{engine}: {runs[-1]}", err=True)
    best = {engine: min(runs, key=lambda one: one["work_s"]) for engine, runs in found.items()}
    return {
        "images": images,
        "rounds": rounds,
        **{f"{engine}_work_s": one["work_s"] for engine, one in best.items()},
        "overhead": best["ray"]["work_s"] / best["local"]["work_s"] - 1,
        "ray_start_s": best["ray"]["until_asked_s"] - best["local"]["until_asked_s"],
        "runs": found,
    }


def working_s(folder: Path) -> float:
    """Seconds from the first to the last batch of each stage, added up: without any process's start."""
    spans: dict[bool, list[float]] = {False: [], True: []}
    for at, name, _, _ in batches(folder):
        spans[name == "student"].append(at)
    return sum(max(times) - min(times) for times in spans.values())


# --- one process, files of their own ----------------------------------------------------------------------------------


def inner(pictures: Path, out: Path) -> dict[str, Any]:
    """One size, in this process, on the local engine."""
    import mpa_edge.vlm

    first_asked: dict[str, float] = {}

    class Prompt(scale_models.Scripted):
        """Answers at once."""

        def answer(self, requests: Any) -> Any:
            first_asked.setdefault(self.name, time.perf_counter())
            return [scale_models.Reply(self._say(request), "stop", 3) for request in requests]

    mpa_edge.vlm.load = Prompt  # type: ignore[assignment]
    from mpa_edge.runs.manifest import MANIFEST
    from mpa_edge.runs.memory import peak_rss_bytes
    from mpa_edge.runs.parquet import part_path
    from mpa_edge.stages import identify
    from mpa_edge.stages.annotate import stage as annotate
    from mpa_edge.stages.run import Run, open_run

    def opened() -> Run:
        return open_run("minicharts", images=str(pictures), out=str(out), overrides=("images.render=null",))

    started, run = time.perf_counter(), opened()
    annotate.run_annotate(run)
    identify.run_identify(run)
    run_s, peak, last = time.perf_counter() - started, peak_rss_bytes(), len(run.shards) - 1
    folder = run.stage_folder("annotate")
    (folder / MANIFEST).unlink()
    part_path(folder, last).unlink()
    first_asked.clear()
    started = time.perf_counter()
    annotate.run_annotate(opened())
    return {"run_s": run_s, "peak_rss_bytes": peak, "resume_s": first_asked["teacher"] - started}


def flat(n: int) -> dict[str, Any]:
    """One size, in a process of its own."""
    with place(None) as temporary:
        draw(temporary / "pictures", n)
        time.sleep(SETTLED_S)
        words = [sys.executable, __file__, "--inner", str(temporary / "pictures"), str(temporary / "run")]
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    click.echo(f"{n}: {found}", err=True)
    return {"pictures": n} | found


def few_and_many(small: int, large: int) -> dict[str, Any]:
    """Two sizes, and what the larger one takes more."""
    few, many = flat(small), flat(large)
    growth = many["peak_rss_bytes"] - few["peak_rss_bytes"]
    return {"small": few, "large": many, "growth_bytes": growth, "resume_s": many["resume_s"], "machine": machine()}


@click.command()
@click.option("--images", type=int, help="Pictures; the driver is killed at 60 % and started again.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--actors", default=2, show_default=True, help="Of the Ray engine.")
@click.option("--shard-size", default=500, show_default=True, help="Pictures in a shard.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep everything here, and go on with it.")
@click.option("--details", type=click.Path(path_type=Path), help="Write all figures here.")
@click.option("--compare", type=int, help="Pictures on both engines with one worker.")
@click.option("--rounds", default=3, show_default=True, help="Of --compare.")
@click.option("--small", default=1000, show_default=True, help="Pictures.")
@click.option("--large", default=100_000, show_default=True, help="Pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--inner", "folders", nargs=2, type=click.Path(path_type=Path), hidden=True)
@click.option("--drive", "order", type=(int, str, int, int, Path), hidden=True)
def main(
    images: int | None,
    engine: str,
    actors: int,
    shard_size: int,
    folder: Path | None,
    details: Path | None,
    compare: int | None,
    rounds: int,
    small: int,
    large: int,
    as_json: bool,
    folders: tuple[Path, Path] | None,
    order: tuple[int, str, int, int, Path] | None,
) -> None:
    """Run the benchmark."""
    if folders:
        click.echo(json.dumps(inner(*folders)))
    elif order:
        *numbers, where = order
        (where / "driver.json").write_text(json.dumps(drive(Size(*numbers), where)))  # type: ignore[arg-type]
    elif compare:
        tell(compared(compare, shard_size, rounds), {}, as_json, details)
    elif images:
        with place(folder) as where:
            tell(*measured(Size(images, engine, actors, shard_size), where), as_json, details)
    else:
        tell(few_and_many(small, large), {}, as_json, details)


def tell(result: dict[str, Any], more: dict[str, Any], as_json: bool, details: Path | None) -> None:
    """One JSON document, or a line for each figure; everything into the file of --details."""
    if details:
        document = {"command": command_line(sys.argv[1:]), **result, **more}
        details.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(result) if as_json else "\n".join(f"{key}: {value}" for key, value in result.items()))


def command_line(words: list[str]) -> str:
    """What was typed, less where files went."""
    kept = [
        word for word, before in zip(words, ["", *words], strict=False) if before not in PLACES and word not in PLACES
    ]
    return " ".join(["python benchmarks/scale.py", *kept])


if __name__ == "__main__":
    main()
