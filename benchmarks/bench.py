"""How true the figures of `mpa-edge bench` are.

    python benchmarks/bench.py memory --work FOLDER
    python benchmarks/bench.py repeat --work FOLDER
    python benchmarks/report.py

FOLDER keeps checkpoints and exports between the commands (5 GB); without it each command makes and removes its own.
All on one thread, answers of fixed length (end tokens are switched off), the cpu target's image budget.

memory: the peak that a job writes down against /usr/bin/time -v around the same job: the largest resident set of any
  of its processes, which is the worker's. Bound: 3 %.
repeat: ten jobs through bench.sh, one after the other: the median TTFT and TPOT of each against the median of all ten.
  Bound: 5 % in nine of ten.
Not timed: making exports, opening the image file, the link to a device.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import shapes as sizes
from common import DOCS, Document, command, machine, remember
from PIL import Image

from mpa_edge.artifact import read_artifact, write_artifact
from mpa_edge.bench.device.protocol import ORDER, OUT, JobOrder, Line, Step, read_lines, to_json
from mpa_edge.bench.host.bundle import Bundle, Question, make_bundle
from mpa_edge.bench.results.documents import peak_memory
from mpa_edge.bench.results.timing import figures, in_rounds, loads, order, timed
from mpa_edge.nursery.render import ANSWERS, render
from mpa_edge.questions.own import read_questions

STUDENT, SHAPES, TARGET, THREADS = "student", "smolvlm-256m", "cpu", 1
PAIRED = ("onnx-int8", "gguf-q8_0")
QUESTION = "What is the value of the purple bar, and which bar is the highest one of all?"
# width and height of an image that SmolVLM cuts into so many tiles under the cpu target, the overview counted
PIXELS = {3: (2 * sizes.TILE_PX, sizes.TILE_PX)}
PACKAGES = ("onnxruntime", "llama-cpp-python", "numpy", "pillow")
RESIDENT = re.compile(r"Maximum resident set size \(kbytes\): (\d+)")


@click.group()
def main() -> None:
    """See the head of this file."""


def common(rounds: int, help_: str) -> Callable[[Any], Any]:
    """A command with the options of all of them."""

    def dressed(function: Any) -> Any:
        function = click.option("--rounds", default=rounds, show_default=True, help=help_)(function)
        function = click.option("--work", type=click.Path(path_type=Path), help="Keeps what is made.")(function)
        function = click.option("--out", type=click.Path(path_type=Path), default=DOCS / "bench.json")(function)
        return main.command()(function)

    return dressed


@common(3, "Jobs of each export.")
def memory(rounds: int, work: Path | None, out: Path) -> None:
    """The job's peak against /usr/bin/time -v."""
    with measuring(out, "memory", work, rounds) as (document, kept, scratch):
        document["exports"] = found = {}
        for model in (STUDENT, SHAPES):
            for scheme, export in exports(kept, model, (*PAIRED, "hybrid-int8-q8_0")).items():
                found[f"{model} {scheme}"] = peaks(export, scratch / model / scheme, model, rounds)


def peaks(export: Path, place: Path, model: str, rounds: int) -> Document:
    """Both peaks of each job, and the largest difference as a share."""
    bundle, ids = bundle_of(export, place, model, tiles=3, tokens=16)
    rows: list[Document] = []
    for number in range(rounds):
        said = place / f"job-{number}.time"
        before = ("/usr/bin/time", "-v", "-o", str(said), "sh")
        peak = peak_memory(job(bundle, place / f"job-{number}", [Step("artifact", i) for i in ids], before), "artifact")
        if peak.peak_bytes is None:
            raise click.ClickException(f"{said}: no peak memory ({peak.method})")
        rows.append({"job_bytes": peak.peak_bytes, "time_bytes": resident_bytes(said.read_text())})
    largest = max(abs(row["job_bytes"] / row["time_bytes"] - 1) for row in rows)
    return {"jobs": rows, "largest_difference": round(largest, 5)}


def resident_bytes(said: str) -> int:
    """What /usr/bin/time -v says.

    >>> resident_bytes("x: 1\\n\\tMaximum resident set size (kbytes): 2\\n")
    2048
    """
    found = RESIDENT.search(said)
    if not found:
        raise click.ClickException("/usr/bin/time said no resident set: install GNU time (apt-get install time)")
    return int(found[1]) * 1024


@common(10, "Jobs of each export.")
def repeat(rounds: int, work: Path | None, out: Path) -> None:
    """The same job ten times."""
    with measuring(out, "repeat", work, rounds) as (document, kept, scratch):
        document["exports"] = found = {}
        for scheme, export in exports(kept, STUDENT, PAIRED).items():
            bundle, ids = bundle_of(export, scratch / scheme, STUDENT, tiles=3, tokens=32)
            steps = order(ids, repetitions=20, timed_ids=ids, variants=["artifact"], seed=0)
            made = [figures_of(job(bundle, scratch / scheme / f"job-{i}", steps)) for i in range(rounds)]
            found[f"{STUDENT} {scheme}"] = {
                metric: spread_of([float(one[metric] or 0.0) for one in made]) for metric in ("ttft_s", "tpot_s")
            }


def spread_of(medians: Sequence[float]) -> Document:
    """Each job's median over the median of all.

    >>> spread_of([1.0, 1.0, 1.2])
    {'median': 1.0, 'over_median': [1.0, 1.0, 1.2], 'within_5_percent': 2}
    """
    middle = statistics.median(medians)
    return {
        "median": round(middle, 6),
        "over_median": [round(one / middle, 4) for one in medians],
        "within_5_percent": sum(abs(one / middle - 1) <= 0.05 for one in medians),
    }


# --- exports, bundles and jobs ----------------------------------------------------------------------------------------


def exports(work: Path, model: str, schemes: Sequence[str]) -> dict[str, Path]:
    """Scheme -> folder, for the cpu target's image budget; what lies in `work` already is not made again."""
    out, source = work / f"{model}-exports", "nursery:student"
    if model != STUDENT:
        source = str(work / model)
        if not (work / model / "config.json").is_file():
            sizes.build(model, work / model)
    missing = [name for name in schemes if not (out / name / "artifact.json").is_file()]
    if missing:
        asked = [part for name in missing for part in ("--as", name)]
        arguments = ["export", source, "--target", TARGET, *asked, "--out", str(out)]
        subprocess.run([sys.executable, "-m", "mpa_edge", *arguments], check=True, stdout=sys.stderr)
    return {name: out / name for name in schemes}


def bundle_of(export: Path, folder: Path, model: str, *, tiles: int, tokens: int) -> tuple[Bundle, list[str]]:
    """(bundle, ids of its questions): answers are `tokens` long; `tiles` of the image are for SmolVLM's sizes only."""
    endless, images = folder / "export", folder / "images"
    shutil.copytree(export, endless, copy_function=os.link)
    artifact = read_artifact(endless)
    (endless / "artifact.json").unlink()  # a link to the export's own
    write_artifact(endless, artifact.model_copy(update={"tokens": artifact.tokens.model_copy(update={"ends": ()})}))
    if model == STUDENT:
        render(images, 4, 11, "target", answers_per_image=2)
        asked = [(s.id, s.image, s.question) for s in read_questions(images / ANSWERS).samples]
    else:
        images.mkdir()
        Image.effect_noise(PIXELS[tiles], 80).convert("RGB").save(images / "noise.png", compress_level=1)
        asked = [("q0", "noise.png", QUESTION)]
    questions = [Question(id=i, image=image, prompt=text, max_new_tokens=tokens) for i, image, text in asked]
    bundle = make_bundle(
        folder=folder / "bundle",
        artifact=endless,
        base=None,
        questions=questions,
        images=images,
        order=JobOrder({"artifact": "models/artifact"}, tuple(Step("artifact", one.id) for one in questions)),
    )
    return bundle, [question.id for question in questions]


def job(bundle: Bundle, folder: Path, steps: Sequence[Step], before: Sequence[str] = ("sh",)) -> list[Line]:
    """A whole job as a device runs it: bench.sh with its probes, its watch and the runner. All of its lines."""
    folder.mkdir(parents=True)
    (folder / ORDER).write_text(
        to_json(JobOrder(bundle.manifest.variants, tuple(steps), threads=THREADS)), encoding="utf-8"
    )
    program = [*before, str(bundle.folder / "bench.sh"), str(folder), sys.executable]
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(program, env=os.environ | one_thread, stderr=subprocess.PIPE, text=True)
    found = (folder / OUT).read_text(encoding="utf-8") if (folder / OUT).is_file() else ""
    lines = list(read_lines(found.split("\n")))
    failed = [line.values["reason"] for line in lines if line.kind == "failed"]
    if done.returncode or failed:
        raise click.ClickException(f"{folder}: {failed or done.stderr}")
    return lines


def figures_of(lines: Sequence[Line]) -> dict[str, float | None]:
    """Medians of a job's counted rounds, as its report says them."""
    rows = in_rounds([timed(line) for line in lines if line.kind == "answer"], "artifact")
    return {metric: one.p50 for metric, one in figures(rows, loads(lines, "artifact")).items()}


@contextmanager
def measuring(out: Path, key: str, work: Path | None, rounds: int) -> Iterator[tuple[Document, Path, Path]]:
    """(document, folder of exports, scratch folder beside it). Written to `out` at the end, with what it ran on."""
    if work:
        work.mkdir(parents=True, exist_ok=True)
    words = command("bench.py", sys.argv[1:], without=("--work", "--out"))
    document: Document = {"command": words, "threads": THREADS, "rounds": rounds}
    ticks, load = cpu_ticks(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        yield document, work or Path(scratch), Path(scratch)
    spent = [after - before for before, after in zip(ticks, cpu_ticks(), strict=True)]
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    document |= {
        "machine": machine(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "load_before": round(load, 2),
        "stolen_share": round(spent[7] / max(1, sum(spent[:8])), 4),
    }
    remember(out, key, document)


def cpu_ticks() -> list[int]:
    """The first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal, ..."""
    return [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]


if __name__ == "__main__":
    main()
