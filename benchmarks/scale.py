"""annotate and identify over very many images, with models that answer from a function: speed, memory, resume.

    python benchmarks/scale.py --images 100000 --engine local --out docs/scale.json
    python benchmarks/scale.py --images 1000000 --engine ray --folder runs/scale --out docs/scale.json
    python benchmarks/scale.py --compare 20000 --out docs/scale.json
    python benchmarks/report.py

--images: the driver is killed (SIGKILL) when 60 % of annotate's shards are written, and the same command is started
again. `rows_per_s` is rows over the wall seconds of both attempts, both stages, processes starting and Ray's own start
included. `resume_s` is from the second start of the program until a model is asked. `rows_redone` is what the teacher
wrote more often than once. `driver_peak_rss_bytes` is VmHWM of the larger driver. The models sleep a thousandth of what
real ones take (scale_models.py). With --folder everything stays there, and an interrupted measurement is resumed.

The images are names (hard links, up to 20,000 each; file systems allow 65,000) of a few drawings. The walk over the
folder, the look at each file, opening and decoding are those of as many files. Only hashing is not: the list of an
earlier scan that a run folder keeps is written beforehand, with an id for each name, as it is there when a run resumes.

--compare: the same images on both engines with one worker; Ray's own start, measured apart, is taken off.
Not measured: models, and what images of a real size take while they are open (mpa_edge/images/cache.py bounds that).
"""

from __future__ import annotations

import hashlib
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
from common import Document, command, machine, read, remember
from PIL import Image

KILL_AT, LOOK_EVERY_S, ROUNDS = 0.6, 0.1, 3
KILLED = "killed.json"
FEWEST_DRAWINGS, NAMES_A_DRAWING, IN_A_FOLDER = 50, 20_000, 1000


@dataclass(frozen=True)
class Size:
    """What is run."""

    images: int
    engine: str
    actors: int
    shard_size: int


# --- the driver: a process of its own ---------------------------------------------------------------------------------


def drive(size: Size, folder: Path) -> Document:
    """Both stages over the images of a folder, as `mpa-edge align` does them."""
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
    run = open_run("minicharts", images=str(folder / "images"), out=str(folder / "run"), overrides=overrides)
    names = ("annotate", "identify")
    run_stages(replace(run, engine=Engine(size.engine)), names)  # type: ignore[arg-type]
    manifests = (read_manifest(folder / "run" / FOLDERS[name]) for name in names)
    return {
        "peak_rss_bytes": peak_rss_bytes(),
        "cpu_s": time.process_time(),
        "stage_s": {one.stage: one.seconds for one in manifests if one},
    }


def start(size: Size, folder: Path) -> subprocess.Popen[bytes]:
    """The driver; its own output goes to stderr, what it found into a file."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", str(here.parent))])
    env = os.environ | {scale_models.LOG_FOLDER: str(folder / "log"), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    numbers = [str(value) for value in (size.images, size.engine, size.actors, size.shard_size)]
    return subprocess.Popen([sys.executable, __file__, "--drive", *numbers, str(folder)], env=env, stdout=sys.stderr)


# --- images and what an earlier scan left -----------------------------------------------------------------------------


def prepare(size: Size, folder: Path) -> None:
    """Names of images, and the list of an earlier scan; what is there is kept."""
    (folder / "log").mkdir(parents=True, exist_ok=True)
    if (folder / "ready").is_file():
        return
    click.echo(f"{size.images} names of images in {folder / 'images'}", err=True)
    drawings, scanned = folder / "drawings", folder / "run" / ".images.jsonl"
    drawings.mkdir(exist_ok=True)
    scanned.parent.mkdir(exist_ok=True)
    kinds = max(FEWEST_DRAWINGS, -(-size.images // NAMES_A_DRAWING))
    for i in range(kinds):
        image = Image.new("RGB", (8, 8))
        image.putpixel((0, 0), (i % 256, i // 256 % 256, i // 65536))
        image.save(drawings / f"{i}.png", compress_level=0)
    names = [f"{i // IN_A_FOLDER:05d}/{i:08d}.png" for i in range(size.images)]
    for i, name in enumerate(names):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.link(drawings / f"{i % kinds}.png", path)
    # a further link changes the dates of all names of a drawing: the list is written when all are there
    with scanned.open("w", encoding="utf-8") as file:
        for name in names:
            status = os.stat(folder / "images" / name)
            mark = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            file.write(json.dumps([name, hashlib.sha256(name.encode()).hexdigest()[:16], *mark]) + "\n")
    (folder / "ready").touch()


# --- the measurement --------------------------------------------------------------------------------------------------


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


def killed_in_the_middle(size: Size, folder: Path) -> Document:
    """The first attempt: killed at 60 % of annotate's shards."""
    began, process, peak = time.time(), start(size, folder), 0
    try:
        while parts(folder) < KILL_AT * -(-size.images // size.shard_size):
            if process.poll() is not None:
                raise click.ClickException(f"the driver ended by itself with {process.returncode}")
            peak = max(peak, peak_of(process.pid))
            time.sleep(LOOK_EVERY_S)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = {"wall_s": time.time() - began, "peak_rss_bytes": peak, "parts": parts(folder)}
    (folder / KILLED).write_text(json.dumps(found))
    click.echo(f"killed after {found['parts']} shards", err=True)
    return found


def finished(size: Size, folder: Path) -> Document:
    """The second attempt: the same command to the end. `resume_s` until a model is asked."""
    began = time.time()
    process = start(size, folder)
    if process.wait() != 0:
        raise click.ClickException(f"the driver ended with {process.returncode}; rerun with --folder to resume")
    wall_s = time.time() - began
    # actors of the killed driver may have lived a moment longer: they are not asked by this one
    firsts = [min(at for at, *_ in asked) for asked in batches(folder).values() if asked]
    asked = [at for at in firsts if at > began]
    return read(folder / "driver.json") | {"wall_s": wall_s, "resume_s": min(asked) - began if asked else 0.0}


def batches(folder: Path) -> dict[str, list[tuple[float, str, str, int]]]:
    """Every batch that a model was asked, by process: when, who, what, how many."""
    found = {}
    for path in (folder / "log").iterdir():
        rows = (line.split() for line in path.read_text().splitlines())
        found[path.name] = [(float(at), name, kind, int(n)) for at, name, kind, n in rows]
    return found


def ids(folder: Path, stage: str) -> tuple[int, int]:
    """(rows, different ids) of a stage."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    files = sorted((folder / "run" / stage).glob("part-*.parquet"))
    column = pa.chunked_array([pq.ParquetFile(path).read(["id"]).column("id").combine_chunks() for path in files])
    return len(column), pc.count_distinct(column).as_py()


def measured(size: Size, folder: Path) -> Document:
    """Killed, resumed and counted."""
    prepare(size, folder)
    first = read(folder / KILLED) or killed_in_the_middle(size, folder)
    second = finished(size, folder)
    rows, unique = ids(folder, "1-annotate")
    if (judged := ids(folder, "2-identify")) != (rows, unique):
        raise click.ClickException(f"identify has {judged} rows and ids; annotate {rows}, {unique}")
    every = [one for asked in batches(folder).values() for one in asked]
    return {
        "images": size.images,
        "rows": rows,
        "unique_ids": unique,
        "rows_per_s": rows / (first["wall_s"] + second["wall_s"]),
        "driver_peak_rss_bytes": max(first["peak_rss_bytes"], second["peak_rss_bytes"]),
        "resume_s": second["resume_s"],
        "rows_redone": sum(n for _, name, kind, n in every if (name, kind) == ("teacher", "wrote")) - size.images,
        "size": vars(size),
        "first": first,
        "second": second,
        "machine": machine(),
    }


def compared(images: int, shard_size: int) -> Document:
    """Seconds of the stages on both engines with one worker, the best of three rounds each, taken in turns.

    From the first to the last batch of each stage, added up: without any process's start.
    """
    found: dict[str, list[dict[str, float]]] = {"local": [], "ray": []}
    for _ in range(ROUNDS):
        for engine, runs in found.items():
            with place(None) as folder:
                size = Size(images, engine, 1, shard_size)
                prepare(size, folder)
                began, done = time.time(), finished(size, folder)
                every = sorted(one for asked in batches(folder).values() for one in asked)
                stages = [[at for at, name, *_ in every if (name == "student") is later] for later in (False, True)]
                work_s = sum(times[-1] - times[0] for times in stages)
                runs.append({"wall_s": done["wall_s"], "until_asked_s": every[0][0] - began, "work_s": work_s})
                click.echo(f"{engine}: {runs[-1]}", err=True)
    best = {engine: min(runs, key=lambda one: one["work_s"]) for engine, runs in found.items()}
    return {
        "images": images,
        "rounds": ROUNDS,
        **{f"{engine}_work_s": one["work_s"] for engine, one in best.items()},
        "overhead": best["ray"]["work_s"] / best["local"]["work_s"] - 1,
        "ray_start_s": best["ray"]["until_asked_s"] - best["local"]["until_asked_s"],
        "runs": found,
    }


@contextmanager
def place(folder: Path | None) -> Iterator[Path]:
    """The folder that was named, or a temporary one."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="scale-") as temporary:
        yield Path(temporary)


@click.command()
@click.option("--images", default=10_000, show_default=True, help="Killed at 60 % and started again.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--actors", default=2, show_default=True, help="Of the Ray engine.")
@click.option("--shard-size", default=500, show_default=True, help="Images in a shard.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep everything here, and resume from it.")
@click.option("--compare", type=int, help="Images on both engines with one worker.")
@click.option("--out", type=click.Path(path_type=Path), help="Add the result to this JSON document.")
@click.option("--drive", "order", type=(int, str, int, int, Path), hidden=True)
def main(
    images: int,
    engine: str,
    actors: int,
    shard_size: int,
    folder: Path | None,
    compare: int | None,
    out: Path | None,
    order: tuple[Any, ...] | None,
) -> None:
    """Run the benchmark; print one JSON document."""
    if order:
        *numbers, where = order
        (where / "driver.json").write_text(json.dumps(drive(Size(*numbers), where)))
        return
    said = {"command": command("scale.py", sys.argv[1:], without=("--folder", "--out"))}
    if compare:
        result = said | compared(compare, shard_size)
    else:
        with place(folder) as where:
            result = said | measured(Size(images, engine, actors, shard_size), where)
    click.echo(json.dumps(result, indent=1))
    if out and compare:
        remember(out, "compare", result)
    elif out:
        others = [one for one in read(out).get("runs", []) if kind_of(one) != kind_of(result)]
        remember(out, "runs", sorted([*others, result], key=kind_of))


def kind_of(run: Document) -> tuple[str, int]:
    """Runs of one kind replace one another."""
    return run["size"]["engine"], run["images"]


if __name__ == "__main__":
    main()
