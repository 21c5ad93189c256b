"""What the benchmark harness itself costs and how true its figures are, and SmolVLM's sizes on this machine.

    python benchmarks/bench.py overhead --work FOLDER
    python benchmarks/bench.py memory --work FOLDER
    python benchmarks/bench.py repeat --work FOLDER
    python benchmarks/bench.py shapes --work FOLDER
    python benchmarks/report.py

FOLDER keeps checkpoints and exports between the commands (5 GB); without it each command makes and removes its own.
All on one thread, answers of fixed length (end tokens are switched off), the cpu target's image budget.

overhead: what the harness reports over what a bare loop takes (bench_bare.py: the same library, options, threads and
  questions, no mpa_edge around it but its image processor and tokenizer). Two processes, A B B A, in turns of all
  questions: a machine that changes its speed changes it for both sides of a pair, and the median of the pairs' ratios
  is what counts. 1.00 is free. TTFT: from the decoded picture to the first token, preprocessing included. Bound: 2 %.
  The harness has each answer on the disk before it asks the next question. That pause leaves a core's caches cold: a
  part of a millisecond of the next TTFT, which is something on a model of 2.8 M parameters. A second bare loop that
  writes its answers down as well tells this from the harness's own work.
memory: the peak that a job writes down against /usr/bin/time -v around the same job: the largest resident set of any
  of its processes, which is the worker's. Bound: 3 %.
repeat: ten jobs through bench.sh, one after the other: the median TTFT and TPOT of each against the median of all ten.
  Bound: 5 % in nine of ten. A bare loop before and behind each job shows what the machine did: where job / bare stays
  put and the job's own seconds do not, the machine moved.
shapes: SmolVLM's sizes with random weights (shapes.py): what it answers means nothing, seconds and bytes do. One
  picture of 5 tiles; medians of a few answers behind a warm-up, through bundle, bench.sh and worker. Decoding reads the
  language model's weights and the cache of keys and values once for each token, so that
      share of the bound = tokens/s x (weights + cache bytes) / (bytes that one thread reads a second)
  with the token embeddings left out where they are a table of their own (one row is read), and the reading speed
  measured right before and behind each job (bench_bandwidth.py). Weights that stay in the L3 cache can beat it.
  Left out: onnx-qdq, which is calibrated on a run's pictures, and the negative controls.
Not timed: making exports, opening the picture file, the way to a device.
"""

from __future__ import annotations

import itertools
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from bench_bandwidth import measured
from bench_decode import cache_bytes, prompt_tokens, share_of_bound, weight_bytes
from bench_jobs import NOISE, QUESTION, SHAPES, STUDENT, bundle_of, exports, ids_of, job, noted, order_for
from bench_pairs import Answer, Bare, compared, pairs

from export import remember
from mpa_edge.bench.device.protocol import Line, Step
from mpa_edge.bench.host.pipeline import model_bytes
from mpa_edge.bench.results.build import peak_memory
from mpa_edge.bench.results.records import Timed
from mpa_edge.bench.results.timing import figures, in_rounds, loads, order, timed

ROOT = Path(__file__).parents[1]
PAIRED, THREADS = ("onnx-int8", "gguf-q8_0"), 1
MODELS = (STUDENT, SHAPES)
# A B B A rounds by model: an answer of SmolVLM's sizes takes seconds
ROUNDS = {STUDENT: 30, SHAPES: 5}
SCHEMES = (
    "onnx-fp32",
    "onnx-fp16",
    "onnx-int8",
    "onnx-q4",
    "onnx-q4f16",
    "gguf-f16",
    "gguf-q8_0",
    "gguf-q6_k",
    "gguf-q4_k_m",
    "gguf-q4_0",
    "hybrid-int8-q8_0",
    "hybrid-int8-q4_0",
)
RESIDENT = re.compile(r"Maximum resident set size \(kbytes\): (\d+)")
KIB = 1024
TILES, TOKENS = 5, 32
"""Of the table of SmolVLM's sizes."""


@click.group()
def main() -> None:
    """See the head of this file."""


def common(rounds: int | None, help_: str) -> Any:
    """Options of every command."""

    def dressed(command: Any) -> Any:
        for option in (
            click.option("--rounds", type=click.IntRange(1), default=rounds, show_default=True, help=help_),
            click.option("--work", type=click.Path(path_type=Path), help="Keeps checkpoints and exports."),
            click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs" / "bench.json"),
        ):
            command = option(command)
        return main.command()(command)

    return dressed


models_option = click.option(
    "--model", "models", type=click.Choice(MODELS), multiple=True, default=MODELS, show_default=True
)


@contextmanager
def places(work: Path | None) -> Iterator[tuple[Path, Path]]:
    """(folder of exports, scratch folder beside it, so that files can be linked); scratch goes at the end."""
    if work:
        work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        yield work or Path(scratch), Path(scratch)


def write(out: Path, key: str, document: dict[str, Any]) -> None:
    """One part of bench.json; the command is written without this machine's folders."""
    words = [word for word in sys.argv[1:] if not word.startswith("/")]
    kept = [w for i, w in enumerate(words) if w not in ("--work", "--out")]
    remember(out, key, {"command": " ".join(["python benchmarks/bench.py", *kept]), "threads": THREADS} | document)


# --- overhead ---------------------------------------------------------------------------------------------------------


@common(None, "A B B A rounds.  [default: 30 for the student, 5 for SmolVLM's sizes]")
@models_option
def overhead(rounds: int | None, work: Path | None, out: Path, models: Sequence[str]) -> None:
    """Harness against bare loop."""
    found: dict[str, Any] = {}
    document: dict[str, Any] = {"exports": found}
    with places(work) as (kept, scratch), noted(document):
        for model in models:
            for scheme, export in exports(kept, model, PAIRED).items():
                found[f"{model} {scheme}"] = over_bare(export, scratch, model, rounds or ROUNDS[model])
    write(out, "overhead", document)


def over_bare(export: Path, scratch: Path, model: str, rounds: int) -> dict[str, Any]:
    """One export against the bare loop, and where answers take milliseconds, against one that writes them down, too."""
    place = scratch / "overhead" / model / export.name
    bundle = bundle_of(export, place, model, tiles=3, tokens=64)
    found = {"plain": ratios(pairs(bundle, place / "job", rounds, THREADS))}
    if model == STUDENT:
        found["notes"] = ratios(pairs(bundle, place / "job-notes", rounds, THREADS, notes=True))
    click.echo(f"{model} {export.name}: {found}", err=True)
    return found


def ratios(made: Sequence[tuple[Answer, Answer]]) -> dict[str, Any]:
    """TTFT and tokens/s of both sides. ClickException where they did not do the same work."""
    if any(one["tokens"] != other["tokens"] for one, other in made):
        raise click.ClickException("the two sides gave answers of different lengths")
    sizes = {"pairs": len(made), "tokens": made[0][0]["tokens"], "prompt_tokens": made[0][1]["prompt_tokens"]}
    return sizes | {metric: compared(made, metric) for metric in ("ttft_s", "tokens_per_s")}


# --- memory -----------------------------------------------------------------------------------------------------------


@common(3, "Jobs of each export.")
@models_option
def memory(rounds: int, work: Path | None, out: Path, models: Sequence[str]) -> None:
    """The job's peak against /usr/bin/time -v."""
    found: dict[str, Any] = {}
    document: dict[str, Any] = {"rounds": rounds, "exports": found}
    with places(work) as (kept, scratch), noted(document):
        for model in models:
            for scheme, export in exports(kept, model, (*PAIRED, "hybrid-int8-q8_0")).items():
                found[f"{model} {scheme}"] = peaks(export, scratch / "memory", model, rounds)
    write(out, "memory", document)


def peaks(export: Path, place: Path, model: str, rounds: int) -> dict[str, Any]:
    """Both peaks of each job, and the largest difference as a share."""
    bundle = bundle_of(export, place / model / export.name, model, tiles=3, tokens=16)
    steps = [Step("artifact", asked) for asked in ids_of(bundle)]
    apart: list[float] = []
    rows: list[dict[str, Any]] = []
    for number in range(rounds):
        folder = place / model / export.name / f"job-{number}"
        said = folder.with_suffix(".time")
        before = ("/usr/bin/time", "-v", "-o", str(said), "sh")
        peak = peak_memory(job(bundle, folder, order_for(bundle, steps, THREADS), before), "artifact")
        if peak.peak_bytes is None:
            raise click.ClickException(f"{folder}: no peak memory ({peak.method})")
        seen_bytes = resident_bytes(said.read_text())
        apart.append(abs(peak.peak_bytes / seen_bytes - 1))
        rows.append({"job_bytes": peak.peak_bytes, "time_bytes": seen_bytes, "method": peak.method})
        click.echo(f"{model} {export.name}: {rows[-1]}", err=True)
    return {"jobs": rows, "largest_difference": round(max(apart), 5)}


def resident_bytes(said: str) -> int:
    """What /usr/bin/time -v says.

    >>> resident_bytes("x: 1\\n\\tMaximum resident set size (kbytes): 2\\n")
    2048
    """
    found = RESIDENT.search(said)
    if not found:
        raise click.ClickException("/usr/bin/time said no resident set: install GNU time (apt-get install time)")
    return int(found[1]) * KIB


# --- repeat -----------------------------------------------------------------------------------------------------------


@common(10, "Jobs of each export.")
@click.option("--model", type=click.Choice(MODELS), default=STUDENT, show_default=True)
@click.option("--scheme", "schemes", multiple=True, default=PAIRED, show_default=True)
def repeat(rounds: int, work: Path | None, out: Path, model: str, schemes: Sequence[str]) -> None:
    """Ten jobs of one export, and a bare loop beside each."""
    found: dict[str, Any] = {}
    document: dict[str, Any] = {"rounds": rounds, "exports": found}
    with places(work) as (kept, scratch), noted(document):
        for scheme, export in exports(kept, model, schemes).items():
            found[f"{model} {scheme}"] = repeated(export, scratch / "repeat" / scheme, model, rounds)
    write(out, "repeat", document)


def repeated(export: Path, place: Path, model: str, rounds: int) -> dict[str, Any]:
    """Medians of each job, and of the bare answers around it."""
    bundle = bundle_of(export, place, model, tiles=3, tokens=32)
    ids = ids_of(bundle)
    steps = order(ids, repetitions=20 if model == STUDENT else 5, timed_ids=ids, variants=["artifact"], seed=0)
    jobs, around = [], []
    with Bare(bundle.folder, THREADS) as bare:
        bare.ask(ids[0])
        around.append(bare_medians(bare, ids))
        for number in range(rounds):
            jobs.append(job_medians(job(bundle, place / f"job-{number}", order_for(bundle, steps, THREADS))))
            around.append(bare_medians(bare, ids))
            click.echo(f"{export.name}: {jobs[-1]}, bare {around[-1]}", err=True)
    return {
        metric: spread_of([j[metric] for j in jobs], [b[metric] for b in around]) for metric in ("ttft_s", "tpot_s")
    }


def job_medians(lines: Sequence[Line]) -> dict[str, float]:
    """p50 of a job's counted rounds, as its report says it."""
    made = figures(in_rounds(timed_rows(lines), "artifact"))
    return {metric: float(made[metric].p50 or 0.0) for metric in ("ttft_s", "tpot_s")}


def timed_rows(lines: Sequence[Line]) -> list[Timed]:
    """Timings of all answers."""
    return [timed(line) for line in lines if line.kind == "answer"]


def bare_medians(bare: Bare, ids: Sequence[str], passes: int = 3) -> dict[str, float]:
    """Medians of a few passes over the questions."""
    rows = [bare.ask(asked) for _ in range(passes) for asked in ids]
    return {metric: statistics.median(row[metric] for row in rows) for metric in ("ttft_s", "tpot_s")}


def spread_of(jobs: Sequence[float], around: Sequence[float]) -> dict[str, Any]:
    """Each job's median over the median of all, and over the bare loop's before and behind it.

    >>> made = spread_of([1.0, 1.0, 1.2], [1.0, 1.0, 1.0, 1.4])
    >>> made["over_median"], made["over_bare"], made["within_5_percent"]
    ([1.0, 1.0, 1.2], [1.0, 1.0, 1.0], 2)
    """
    middle = statistics.median(jobs)
    beside = [(before + behind) / 2 for before, behind in itertools.pairwise(around)]
    ratios = [one / other for one, other in zip(jobs, beside, strict=True)]
    usual = statistics.median(ratios)
    return {
        "median": round(middle, 6),
        "over_median": [round(one / middle, 4) for one in jobs],
        "over_bare": [round(one, 4) for one in ratios],
        "bare_over_its_median": [round(one / statistics.median(around), 4) for one in around],
        "within_5_percent": sum(abs(one / middle - 1) <= 0.05 for one in jobs),
        "ratio_within_5_percent": sum(abs(one / usual - 1) <= 0.05 for one in ratios),
    }


# --- SmolVLM's sizes --------------------------------------------------------------------------------------------------


@common(3, "Answers that count, behind one that does not.")
@click.option(
    "--scheme", "schemes", multiple=True, default=SCHEMES, help="[default: all but onnx-qdq and the controls]"
)
def shapes(rounds: int, work: Path | None, out: Path, schemes: Sequence[str]) -> None:
    """Every scheme on SmolVLM-256M's sizes."""
    rows: dict[str, Any] = {}
    document: dict[str, Any] = {"rounds": rounds, "tiles": TILES, "tokens": TOKENS, "schemes": rows}
    with places(work) as (kept, scratch), noted(document):
        for scheme, export in exports(kept, SHAPES, schemes).items():
            rows[scheme] = shape(export, scratch / "shapes" / scheme, rounds)
            click.echo(f"{scheme}: {rows[scheme]}", err=True)
    write(out, "shapes", document)


def shape(export: Path, place: Path, rounds: int) -> dict[str, Any]:
    """One row: seconds, memory, size, and how near decoding comes to what the memory allows."""
    bundle = bundle_of(export, place, SHAPES, tiles=TILES, tokens=TOKENS)
    steps = [Step("artifact", asked, number) for number in range(1, rounds + 1) for asked in ids_of(bundle)]
    before = measured()
    lines = job(bundle, place / "job", order_for(bundle, steps, THREADS))
    bandwidth = statistics.mean([before, measured()])
    made = figures(in_rounds(timed_rows(lines), "artifact"), loads(lines, "artifact"))
    p50 = {metric: row.p50 for metric, row in made.items()}
    read = weight_bytes(export) + cache_bytes(export, context_tokens(export, place))
    return {
        **{name: p50[name] for name in ("load_s", "vision_encode_s", "prefill_s", "ttft_s", "tpot_s", "tokens_per_s")},
        "peak_bytes": peak_memory(lines, "artifact").peak_bytes,
        "size_bytes": model_bytes(bundle),
        "read_bytes_per_token": read,
        "bandwidth_bytes_per_s": round(bandwidth),
        "share_of_bound": round(share_of_bound(float(p50["tokens_per_s"] or 0.0), read, bandwidth), 3),
    }


def context_tokens(export: Path, place: Path) -> int:
    """What stands in the cache in the middle of an answer."""
    return prompt_tokens(export, place / "images" / NOISE, QUESTION) + TOKENS // 2


if __name__ == "__main__":
    main()
