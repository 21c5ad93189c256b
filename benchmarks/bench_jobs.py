"""What bench.py measures with: exports, bundles that answer at a fixed length, and jobs as a device runs them."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import shapes
from align import machine
from bench_decode import tiles_of
from PIL import Image

from mpa_edge.artifact import read_artifact, write_artifact
from mpa_edge.bench.device.protocol import ORDER, OUT, JobOrder, Line, Step, read_lines, to_json
from mpa_edge.bench.host.bundle import Bundle, Question, make_bundle
from mpa_edge.config.library import load_target
from mpa_edge.nursery.render import ANSWERS, render
from mpa_edge.questions.own import read_samples

STUDENT, SHAPES = "student", "smolvlm-256m"
TARGET, NOISE = "cpu", "noise.png"
QUESTION = "What is the value of the purple bar, and which bar is the highest one of all?"
PACKAGES = ("onnxruntime", "llama-cpp-python", "numpy", "pillow")
# one thread for whatever a process computes beside its runtime
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


# --- exports ----------------------------------------------------------------------------------------------------------


def exports(work: Path, model: str, schemes: Sequence[str]) -> dict[str, Path]:
    """Scheme -> folder, for the cpu target's image budget; what lies in `work` already is not made again."""
    out = work / f"{model}-exports"
    missing = [name for name in schemes if not (out / name / "artifact.json").is_file()]
    if missing:
        asked = [part for name in missing for part in ("--as", name)]
        command = ["export", source(work, model), "--target", TARGET, *asked, "--out", str(out)]
        subprocess.run([sys.executable, "-m", "mpa_edge", *command], check=True, stdout=sys.stderr)
    return {name: out / name for name in schemes}


def source(work: Path, model: str) -> str:
    """The built-in student, or a checkpoint of SmolVLM's sizes, which is made."""
    if model == STUDENT:
        return "nursery:student"
    if not (work / model / "config.json").is_file():
        shapes.build(model, work / model)
    return str(work / model)


def unending(export: Path, folder: Path) -> Path:
    """The same export without end tokens, as links: answers are as long as they are asked to be."""
    shutil.copytree(export, folder, copy_function=os.link, dirs_exist_ok=False)
    artifact = read_artifact(folder)
    (folder / "artifact.json").unlink()  # a link to the export's own
    write_artifact(folder, artifact.model_copy(update={"tokens": artifact.tokens.model_copy(update={"ends": ()})}))
    return folder


# --- bundles ----------------------------------------------------------------------------------------------------------


def bundle_of(export: Path, folder: Path, model: str, *, tiles: int, tokens: int) -> Bundle:
    """A bundle of one export; its folder must not be there. `tiles` is for SmolVLM's sizes only."""
    endless = unending(export, folder / "export")
    images, questions = asked(folder / "images", model, tiles, tokens)
    if model != STUDENT and (found := tiles_of(endless, images / NOISE)) != tiles:
        raise click.ClickException(f"{export} cuts the picture into {found} tiles, not {tiles}: make the exports anew")
    target = load_target(TARGET)
    return make_bundle(
        folder=folder / "bundle", target=target, artifact=endless, base=None, questions=questions, images=images
    )


def asked(folder: Path, model: str, tiles: int, tokens: int) -> tuple[Path, list[Question]]:
    """(folder of the pictures, questions): eight of the built-in set, or one about a picture of so many tiles."""
    if model == STUDENT:
        images = render(folder, 4, 11, "target", answers_per_image=2)
        samples = read_samples(images / ANSWERS)
        return images, [Question(id=s.id, image=s.image, prompt=s.question, max_new_tokens=tokens) for s in samples]
    folder.mkdir(parents=True)
    Image.effect_noise(size_of(tiles), 80).convert("RGB").save(folder / NOISE, compress_level=1)
    return folder, [Question(id="q0", image=NOISE, prompt=QUESTION, max_new_tokens=tokens)]


def size_of(tiles: int) -> tuple[int, int]:
    """(width, height) of a picture that SmolVLM cuts into so many tiles under the cpu target, the overview counted."""
    edge = shapes.TILE_PX
    return {3: (2 * edge, edge), 5: (2 * edge, 2 * edge)}[tiles]


def ids_of(bundle: Bundle) -> list[str]:
    """Ids of its questions."""
    lines = (bundle.folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["id"] for line in lines]


def order_for(bundle: Bundle, steps: Iterable[Step], threads: int) -> JobOrder:
    """An order on a number of threads."""
    return JobOrder(bundle.variants, tuple(steps), threads=threads)


# --- jobs -------------------------------------------------------------------------------------------------------------


def job(bundle: Bundle, folder: Path, order: JobOrder, before: Sequence[str] = ("sh",)) -> list[Line]:
    """A whole job as a device runs it: bench.sh with its probes, its watch and the runner. All of its lines."""
    return run(folder, order, [*before, str(bundle.folder / "bench.sh"), str(folder), sys.executable])


def run(folder: Path, order: JobOrder, command: Sequence[str]) -> list[Line]:
    """Start a job in a folder with an order, and read what it said. ClickException where it failed."""
    folder.mkdir(parents=True)
    (folder / ORDER).write_text(to_json(order), encoding="utf-8")
    done = subprocess.run(command, env=os.environ | ONE_THREAD, stderr=subprocess.PIPE, text=True)
    lines = list(read_lines((folder / OUT).read_text(encoding="utf-8").split("\n")))
    failed = [line.values["reason"] for line in lines if line.kind == "failed"]
    if done.returncode or failed:
        raise click.ClickException(f"{folder}: {failed or done.stderr}")
    return lines


# --- what it ran on ---------------------------------------------------------------------------------------------------


@contextmanager
def noted(document: dict[str, Any]) -> Iterator[None]:
    """Add the machine, the versions, the day, and what else the machine did meanwhile."""
    ticks, load = cpu_ticks(), os.getloadavg()[0]
    yield
    spent = [after - before for before, after in zip(ticks, cpu_ticks(), strict=True)]
    document |= {
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "load_before": round(load, 2),
        "stolen_share": round(spent[7] / max(1, sum(spent[:8])), 4),
    }


def cpu_ticks() -> list[int]:
    """The first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal, ..."""
    return [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
