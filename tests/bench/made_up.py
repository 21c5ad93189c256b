"""Made-up benchmarks that look like real ones: the figures agree with the answers and timings beside them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mpa_edge.bench.results.records import (
    ANSWERS,
    BENCH,
    METRICS,
    SWEEP,
    THUMBNAILS,
    TIMINGS,
    AnswerRow,
    BenchReport,
    BudgetLine,
    EnergyResult,
    Environment,
    Figure,
    MemoryResult,
    Sweep,
    SweepPoint,
    Timed,
)
from mpa_edge.bench.results.samples import pick
from mpa_edge.metrics.gain import MARGIN, accuracy_result, judge, not_worse

SEED = 7
QUESTIONS = ("How many bars are there?", "What is the value of {}?", "Which bar is highest?", "Is {} above 20?")
NAMES = ("April", "Berlin", "cocoa", "May", "Oslo", "rye", "tea", "zinc")
# median seconds of one answer of the artifact; base is a little slower in the same scheme
PHASES = {"preprocess_s": 0.021, "vision_encode_s": 0.612, "prefill_s": 0.184, "tpot_s": 0.0112}


def scores(n: int, right: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """(n, 3) of 0 and 1: base, aligned, artifact; the artifact mostly agrees with aligned."""
    base, aligned, artifact = right
    difficulty = rng.random(n)
    columns = [difficulty < base, difficulty + rng.normal(0, 0.03, n) < aligned]
    lost = rng.random(n) < max(0.0, aligned - artifact) / aligned + 0.01
    found = rng.random(n) < 0.02
    return np.stack([*columns, (columns[1] & ~lost) | found], axis=1).astype(float)


def answers(n: int, right: tuple[float, float, float], rng: np.random.Generator) -> list[AnswerRow]:
    rows = []
    for i, score in enumerate(scores(n, right, rng)):
        name, value = NAMES[i % len(NAMES)], int(rng.integers(5, 60))
        other = NAMES[(i + 1 + value % 3) % len(NAMES)]
        gold, wrong = (
            (str(2 + value % 6), str(3 + value % 6)),
            (str(value), str(value + 1 + i % 7)),
            (name, other),
            ("yes", "no"),
        )[i % 4]
        said = [gold if one else wrong for one in score]
        rows.append(
            AnswerRow(
                id=f"q{i:04}",
                image=f"chart-{i // 2:04}.png",
                question=QUESTIONS[i % 4].format(name),
                kind=None,
                answers=(gold,),
                base=said[0],
                aligned=said[1],
                artifact=said[2],
                scores=tuple(float(s) for s in score),
            )
        )
    return rows


def chart(path: Path, rng: np.random.Generator) -> None:
    """A bar chart, small."""
    image = Image.new("RGB", (240, 168), "#fdfdfb")
    draw = ImageDraw.Draw(image)
    for i, height in enumerate(rng.integers(20, 130, 6)):
        draw.rectangle((18 + 36 * i, 146 - height, 42 + 36 * i, 146), fill=("#4878a8", "#c06048", "#6a9a5b")[i % 3])
    draw.line((12, 147, 230, 147), fill="#444")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=80)


def figure(samples: np.ndarray, unit: str) -> Figure:
    """As the arithmetic of a benchmark makes it; here with a normal approximation of the interval."""
    if not len(samples):
        return Figure(unit=unit, n=0, p50=None, p90=None, p99=None, ci95=None)
    p50, p90, p99 = (float(value) for value in np.percentile(samples, [50, 90, 99]))
    reach = 1.96 * 1.2533 * float(samples.std()) / math.sqrt(len(samples))
    ci95 = (p50 - reach, p50 + reach) if len(samples) > 1 else None
    return Figure(unit=unit, n=len(samples), p50=p50, p90=p90, p99=p99, ci95=ci95)


def timings(slower: float, rng: np.random.Generator, n: int = 40) -> list[Timed]:
    rows = []
    for variant, factor in (("artifact", slower), ("base", 1.04)):
        for i in range(n):
            values = {name: value * factor * float(rng.lognormal(0, 0.04)) for name, value in PHASES.items()}
            tokens = 3.0 + i % 4
            ttft = sum(value for name, value in values.items() if name != "tpot_s")
            decode = values["tpot_s"] * (tokens - 1)
            values |= {"ttft_s": ttft, "total_s": ttft + decode, "tokens": tokens}
            values["tokens_per_s"] = 1 / values["tpot_s"]
            rows.append(Timed(variant=variant, id=f"q{i % 8:04}", repetition=1 + i // 8, values=values))
    return rows


def latency(rows: list[Timed], variant: str) -> dict[str, Figure]:
    found = {}
    for metric, unit in METRICS.items():
        values = [row.values[metric] for row in rows if row.variant == variant and metric in row.values]
        found[metric] = figure(np.array(values if metric != "load_s" else [1.84]), unit)
    return found


def budgets(found: dict[str, Figure], peak: int, counts: bool) -> tuple[BudgetLine, ...]:
    lines = []
    measured = {"memory_bytes": peak, "ttft_s": found["ttft_s"].p50, "tokens_per_s": found["tokens_per_s"].p50}
    for name, limit in (("memory_bytes", 6e8), ("ttft_s", 0.75), ("tokens_per_s", 60.0)):
        by = (measured[name] / limit - 1) * (1 if name == "tokens_per_s" else -1)
        values = {"measured": measured[name], "met": by >= 0, "by": by} if counts else {}
        why = "half of what the board can do"
        lines.append(
            BudgetLine(name=name, limit=limit, why=why, **{"measured": None, "met": None, "by": None, **values})
        )
    return tuple(lines)


def environment(emulated: bool) -> Environment:
    return Environment(
        machine="aarch64",
        cpu="Cortex-A78AE",
        cpu_features=("asimddp", "fphp"),
        cores=6,
        os="Ubuntu 22.04.5 LTS" if not emulated else "Debian GNU/Linux 13 (trixie)",
        runtime="llama.cpp b8941",
        backend="CPU" if emulated else "CUDA",
        threads=4,
        transport="local" if emulated else "ssh orin",
        readings={
            "governor": "schedutil",
            "power_mode": "15W",
            "temperature_c": {"cpu": 48.5, "gpu": 47.0},
            "throttled": False,
            "battery": {"value": None, "reason": "no battery"},
            "emc_frequency_hz": {"value": None, "reason": "permission denied"},
        },
    )


def report_of(
    rows: list[AnswerRow], timed: list[Timed], *, run: str, scheme: str, target: str, emulated: bool, peak: int
) -> BenchReport:
    base, aligned, artifact = ([row.scores[i] for row in rows] for i in range(3))
    clusters = [row.image for row in rows]
    word = judge(base, aligned, artifact, clusters)
    found, counts = latency(timed, "artifact"), not emulated
    energy = EnergyResult(joules_per_token=0.146, mean_power_w=12.4, idle_power_w=4.9, source="VDD_IN", samples=412)
    verdict = "lost" if word.verdict == "lost" else word.verdict if counts else "invalid"
    return BenchReport(
        run=run,
        scheme=scheme,
        created="2026-11-20T09:14:03Z",
        bundle_sha256="3f" * 32,
        target=target,
        emulated=emulated,
        environment=environment(emulated),
        accuracy=accuracy_result(base, aligned, artifact, clusters, resamples=400),
        accuracy_verdict=word.verdict,
        n_to_settle=word.n_to_settle,
        not_worse=not_worse(aligned, artifact, clusters),
        margin=MARGIN,
        latency=found,
        base_latency=latency(timed, "base"),
        not_timed=("decoding of the image file", "start of the process", "the way from the host to the device"),
        timings="valid" if counts else "invalid: emulated",
        size_bytes=int(0.62 * peak),
        memory=MemoryResult(peak_bytes=peak, method="max(VmHWM, VmRSS + VmSwap) of the runner's process"),
        energy=energy if counts else None,
        energy_reason="VDD_IN, idle power subtracted" if counts else "emulated",
        budgets=budgets(found, peak, counts),
        verdict=verdict,
        reasons=word.reasons if counts else ("an emulator ran it: timings say nothing", *word.reasons),
        refused=("gguf-q4_0: it may lose 2.7 points of accuracy, 1 is allowed",) if scheme == "gguf-q8_0" else (),
    )


def write(
    folder: Path,
    *,
    run: str = "minicharts",
    scheme: str = "gguf-q8_0",
    target: str = "jetson",
    n: int = 400,
    right: tuple[float, float, float] = (0.58, 0.71, 0.70),
    slower: float = 1.0,
    emulated: bool = False,
    peak: int = 456_000_000,
    seed: int = SEED,
) -> Path:
    """Write one benchmark to `folder`; returns it."""
    rng = np.random.default_rng(seed)
    rows, timed = answers(n, right, rng), timings(slower, rng)
    shown = {row.id for row in pick(rows)}
    for i, row in enumerate(rows):
        if row.id in shown:
            rows[i] = row.model_copy(update={"thumbnail": f"{THUMBNAILS}/{row.id}.jpg"})
            chart(folder / THUMBNAILS / f"{row.id}.jpg", rng)
    folder.mkdir(parents=True, exist_ok=True)
    report = report_of(rows, timed, run=run, scheme=scheme, target=target, emulated=emulated, peak=peak)
    (folder / BENCH).write_text(report.model_dump_json(indent=1))
    (folder / ANSWERS).write_text("".join(row.model_dump_json() + "\n" for row in rows))
    (folder / TIMINGS).write_text("".join(row.model_dump_json() + "\n" for row in timed))
    return folder


def write_sweep(folder: Path, target: str = "jetson") -> Path:
    """Nine settings of one target; returns the file."""
    points = []
    for scheme, loss, speed, memory in (("gguf-q8_0", 0.0, 72, 456e6), ("gguf-q4_k_m", 0.03, 96, 340e6)):
        for tiles, accuracy, ttft in ((1, 0.62, 0.21), (4, 0.70, 0.61), (9, 0.715, 1.42)):
            value = accuracy - loss
            points.append((scheme, tiles, value, ttft * (0.9 if loss else 1), speed, int(memory + 3e7 * tiles)))
    points += [("onnx-int8", 1, 0.60, 0.17, 48, 640_000_000), ("onnx-int8", 4, 0.69, 0.66, 47, 690_000_000)]
    made = []
    for scheme, tiles, value, ttft, speed, memory in points:
        beaten = any(
            o[2] >= value and o[3] <= ttft and o[4] >= speed and o[5] <= memory and o[:2] != (scheme, tiles)
            for o in points
        )
        made.append(
            SweepPoint(
                settings={"threads": 4, "image_budget": tiles, "scheme": scheme},
                accuracy=value,
                ci95=(value - 0.035, value + 0.034),
                ttft_s=ttft,
                tokens_per_s=float(speed),
                peak_bytes=memory,
                within_budgets=ttft <= 0.75 and memory < 6e8 and speed >= 60,
                on_front=not beaten,
            )
        )
    sweep = Sweep(
        target=target,
        points=tuple(made),
        recommended=1,
        reason="the best accuracy within budgets; others within its interval are slower",
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SWEEP).write_text(sweep.model_dump_json(indent=1))
    return folder / SWEEP


def write_run(run: Path) -> Path:
    """A run with three schemes (holds, lost, inconclusive), one emulated target and a sweep."""
    jetson = run / "bench" / "jetson"
    write(jetson / "gguf-q8_0", run=run.name)
    write(jetson / "gguf-q2_k", run=run.name, scheme="gguf-q2_k", right=(0.58, 0.71, 0.56), peak=210_000_000)
    write(
        jetson / "onnx-int8",
        run=run.name,
        scheme="onnx-int8",
        n=60,
        right=(0.62, 0.7, 0.68),
        slower=1.3,
        peak=560_000_000,
    )
    write(run / "bench" / "arm64" / "gguf-q8_0", run=run.name, target="arm64", emulated=True)
    write_sweep(jetson)
    return run


def verdicts(run: Path) -> dict[str, str]:
    """target/scheme -> verdict, for a look."""
    found = sorted(run.glob(f"bench/*/*/{BENCH}"))
    return {"/".join(path.parts[-3:-1]): json.loads(path.read_text())["verdict"] for path in found}
