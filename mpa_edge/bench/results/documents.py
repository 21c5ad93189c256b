"""The documents of a benchmark, from what the host knows and what the device left behind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpa_edge.bench.device.protocol import JobOrder, Line
from mpa_edge.bench.measurement import Bench
from mpa_edge.bench.results.budgets import budget_lines
from mpa_edge.bench.results.build import answer_rows, busy, peak_memory, require_all
from mpa_edge.bench.results.probe import Probe, WatchLine, known
from mpa_edge.bench.results.records import (
    ANSWERS,
    BENCH,
    PICTURES,
    TIMINGS,
    AnswerRow,
    BenchReport,
    EnergyResult,
    Timed,
)
from mpa_edge.bench.results.samples import pick
from mpa_edge.bench.results.sensors import energy_of, environment, throttled
from mpa_edge.bench.results.timing import drift, figures, in_rounds, level, loads, timed
from mpa_edge.bench.results.validity import cautions, invalid_reasons, overall
from mpa_edge.images.folder import open_image
from mpa_edge.metrics.gain import MARGIN, accuracy_result, judge, not_worse
from mpa_edge.runs.files import atomic_write, make_folder, write_bytes, write_json
from mpa_edge.tasks import get_task
from mpa_edge.types import Drop, Prediction, Record

NOT_TIMED = ("reading the picture's file and decoding it", "the first answer of each process, which warms it up")
THUMBNAIL_PIXELS = 320
DRIFTING = ("ttft_s", "tpot_s")


@dataclass(frozen=True)
class Evidence:
    """What a job on a device left behind."""

    order: JobOrder
    """What was asked."""
    lines: Sequence[Line]
    """What was answered."""
    before: Probe
    """The device when the job began."""
    during: Sequence[WatchLine]
    """The device meanwhile, and when the job had ended."""
    transport: str
    """The way to it."""
    size_bytes: int
    """Of the artifact there."""
    not_timed: tuple[str, ...] = ()
    """What this runtime cannot say, beside NOT_TIMED."""


@dataclass(frozen=True)
class Documents:
    """Everything that is written."""

    report: BenchReport
    """bench.json."""
    answers: Sequence[AnswerRow]
    """answers.jsonl."""
    timings: Sequence[Timed]
    """timings.jsonl."""


def report_of(
    bench: Bench, bundle_sha256: str, base: Sequence[Prediction], aligned: Sequence[Prediction], evidence: Evidence
) -> Documents:
    """All documents of one benchmark. MpaError where an answer is missing."""
    require_all(evidence.order.steps, evidence.lines)
    rows = answer_rows(get_task(bench.recipe.task), base, aligned, evidence.lines)
    was, could, does = ([row.scores[i] for row in rows] for i in range(3))
    pictures = [row.image for row in rows]
    judgement = judge(was, could, does, pictures)
    timings = [timed(line) for line in evidence.lines if line.kind == "answer"]
    latency = figures(in_rounds(timings, "artifact"), loads(evidence.lines, "artifact"))
    memory = peak_memory(evidence.lines, "artifact")
    invalid = why_invalid(bench, evidence)
    energy, energy_reason = energy_of_artifact(evidence, bool(invalid))
    report = BenchReport(
        run=bench.name,
        scheme=bench.scheme,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle_sha256=bundle_sha256,
        target=bench.target.name,
        emulated=known(evidence.before.emulated) is True,
        environment=environment(evidence.before, first_loaded(evidence.lines), evidence.transport),
        accuracy=accuracy_result(was, could, does, pictures, seed=bench.recipe.seed),
        accuracy_verdict=judgement.verdict,
        n_to_settle=judgement.n_to_settle,
        not_worse=not_worse(could, does, pictures),
        margin=MARGIN,
        latency=latency,
        base_latency=base_latency(evidence.lines, timings),
        not_timed=(*NOT_TIMED, *cold(evidence.lines), *evidence.not_timed),
        timings=f"invalid: {'; '.join(invalid)}" if invalid else "valid",
        memory=memory,
        size_bytes=evidence.size_bytes,
        energy=energy,
        energy_reason=energy_reason,
        budgets=budget_lines(bench.target.budgets, latency, memory, counts=not invalid),
        verdict=overall(judgement.verdict, bool(invalid)),
        reasons=(*judgement.reasons, *invalid, *careful(bench, evidence, timings)),
    )
    return Documents(report, rows, timings)


def why_invalid(bench: Bench, evidence: Evidence) -> tuple[str, ...]:
    """Why timings, memory, energy and budgets do not count; empty where they do."""
    slowed = throttled(evidence.before, evidence.during, bench.target.thermal)
    machine, asked = known(evidence.before.machine), bench.target.architecture
    other = machine is not None and asked not in ("any", {"arm64": "aarch64"}.get(machine, machine))
    wrong = (f"measured on {machine}, and target {bench.target.name} is {asked}",) if other else ()
    return (*invalid_reasons(evidence.before, slowed), *wrong)


def careful(bench: Bench, evidence: Evidence, timings: Sequence[Timed]) -> tuple[str, ...]:
    """What does not make a benchmark invalid, and should be known."""
    rounds = in_rounds(timings, "artifact")
    drifts = {metric: drift(level(rounds, metric)) for metric in DRIFTING}
    other = sum(line.kind == "answer" and line.values.get("same_pixels") is False for line in evidence.lines)
    pixels = f"in {other} answers the device decoded the picture to other pixels than the host" if other else ""
    return (*cautions(evidence.before, bench.target.thermal, drifts), *([pixels] if pixels else []))


def cold(lines: Sequence[Line]) -> tuple[str, ...]:
    """What to say where no load was proven to read from the disk."""
    proven = any(line.values.get("cold") for line in lines if line.kind == "loaded" and line.variant == "artifact")
    return () if proven else ("reading the files from the disk: load_s may be of files that were in memory already",)


def first_loaded(lines: Sequence[Line]) -> dict[str, Any]:
    """What the artifact's first process said of its runtime."""
    return next((line.values for line in lines if line.kind == "loaded" and line.variant == "artifact"), {})


def base_latency(lines: Sequence[Line], timings: Sequence[Timed]) -> dict[str, Any]:
    """Figures of base; empty where it was not asked."""
    rows = in_rounds(timings, "base")
    return dict(figures(rows, loads(lines, "base"))) if rows else {}


def energy_of_artifact(evidence: Evidence, invalid: bool) -> tuple[EnergyResult | None, str]:
    """Energy of the artifact's answers."""
    if invalid:
        return None, "timings do not count, and energy is power over time"
    spans = busy(evidence.lines, "artifact")
    starts = [line.values["uptime_s"] for line in evidence.lines if line.kind == "loaded" and "uptime_s" in line.values]
    return energy_of(
        evidence.during,
        [(span.start_uptime_s, span.end_uptime_s) for span in spans],
        sum(span.tokens for span in spans),
        began_uptime_s=min(starts, default=None),
    )


# --- onto the disk ----------------------------------------------------------------------------------------------------


def write_documents(made: Documents, images: Path, folder: Path) -> None:
    """All of them into a folder, bench.json last."""
    pictures = write_pictures(pick(made.answers), images, make_folder(folder / PICTURES))
    rows = [row.model_copy(update={"picture": pictures.get(row.image)}) for row in made.answers]
    write_jsonl(folder / ANSWERS, rows)
    write_jsonl(folder / TIMINGS, made.timings)
    write_json(folder / BENCH, made.report)


def write_pictures(rows: Iterable[AnswerRow], images: Path, folder: Path) -> dict[str, str]:
    """A small JPEG of each picture; image -> path beside bench.json."""
    import io

    made: dict[str, str] = {}
    for row in rows:
        opened = open_image(images / row.image) if row.image not in made else Drop("done")
        if isinstance(opened, Drop):
            continue
        opened.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        data = io.BytesIO()
        opened.save(data, "JPEG", quality=85)
        name = f"{len(made):03}.jpg"
        write_bytes(folder / name, data.getvalue())
        made[row.image] = f"{PICTURES}/{name}"
    return made


def write_jsonl(path: Path, rows: Iterable[Record]) -> None:
    """One JSON object a line."""
    with atomic_write(path) as file:
        for row in rows:
            file.write((json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n").encode())
