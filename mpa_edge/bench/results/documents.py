"""The documents of a benchmark, built from the answers on the host and the results of the job on the device."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mpa_edge.bench.device.protocol import JobOrder, Line, Step, answered
from mpa_edge.bench.measurement import Bench
from mpa_edge.bench.results.accelerators import accelerator_of, not_there
from mpa_edge.bench.results.probe import Reading
from mpa_edge.bench.results.records import (
    ANSWERS,
    BENCH,
    THUMBNAILS,
    TIMINGS,
    AnswerRow,
    BenchReport,
    EnergyResult,
    MemoryResult,
    Timed,
)
from mpa_edge.bench.results.samples import pick
from mpa_edge.bench.results.sensors import energy_of, environment, throttled
from mpa_edge.bench.results.timing import drift, figures, in_rounds, loads, over_question_medians, timed
from mpa_edge.bench.results.validity import budget_lines, cautions, invalid_reasons, overall
from mpa_edge.config.target import BudgetName, Thermal
from mpa_edge.errors import MpaError
from mpa_edge.images.decode import as_jpeg
from mpa_edge.images.folder import open_image
from mpa_edge.metrics import get_metric
from mpa_edge.metrics.gain import MARGIN, accuracy_result, judge, not_worse
from mpa_edge.planning.budgets import Limit
from mpa_edge.runs import paths
from mpa_edge.runs.files import atomic_write, make_folder, write_bytes, write_json
from mpa_edge.tasks import Task, get_task
from mpa_edge.types import Drop, Prediction, Record, Truth

NOT_TIMED = ("reading and decoding the image file", "the first answer of each process, which warms it up")
MAYBE_WARM = "reading the files from the disk: load_s may be of files that were in memory already"
THUMBNAIL_PIXELS = 320
NEW = ".new"


@dataclass(frozen=True)
class Evidence:
    """The results of a job on a device."""

    order: JobOrder
    """The questions."""
    lines: Sequence[Line]
    """All lines of out.jsonl."""
    before: Reading
    """The device when the job began."""
    during: Sequence[Reading]
    """The device while the job ran, and after it."""
    transport: str
    """Name of the connection to it."""
    size_bytes: int
    """Of the artifact on it."""
    not_timed: tuple[str, ...] = ()
    """What this runtime does not time, besides NOT_TIMED."""
    cautions: tuple[str, ...] = ()
    """What of the job's output was left out."""
    images: Mapping[str, str] = field(default_factory=dict)
    """Question -> its image; empty where that is the cluster of the host's answers."""


def report_of(
    bench: Bench,
    bundle_sha256: str,
    base: Sequence[Prediction],
    aligned: Sequence[Prediction],
    evidence: Evidence,
    limits: Mapping[BudgetName, Limit],
    truth: Truth = "labels",
) -> tuple[BenchReport, list[AnswerRow], list[Timed]]:
    """All documents of one benchmark: bench.json, answers.jsonl, timings.jsonl. MpaError where an answer is missing.

    `bundle_sha256`: of what was sent to the device; `base`, `aligned`: the host's answers to the same questions;
    `limits`: the budgets of this model; `truth`: what theirs are compared with.
    """
    lines = evidence.lines
    require_all(evidence.order.steps, lines, evidence.cautions)
    rows = answer_rows(get_task(bench.recipe.task), base, aligned, lines, evidence.images)
    before, after, on_device = ([row.scores[i] for row in rows] for i in range(3))
    images = [row.cluster for row in rows]
    judgement = judge(before, after, on_device, images)
    timings = [timed(line) for line in lines if line.kind == "answer"]
    rounds, base_rounds = in_rounds(timings, "artifact"), in_rounds(timings, "base")
    latency = figures(rounds, loads(lines, "artifact"))
    memory = peak_memory(lines, "artifact")
    sign = throttled(evidence.before, evidence.during, bench.target.thermal)
    accelerator = accelerator_of(evidence.order, lines)
    invalid = invalid_reasons(evidence.before, bench.target, sign, accelerator)
    warnings = (*warnings_of(evidence, bench.target.thermal, rounds), *not_there(accelerator))
    energy, energy_reason = energy_of_artifact(evidence, bool(invalid))
    loaded = [line.values for line in lines if line.kind == "loaded" and line.variant == "artifact"]
    warm = () if any(values.get("cold") for values in loaded) else (MAYBE_WARM,)
    report = BenchReport(
        run=bench.run.resolve().name,
        scheme=bench.scheme,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle_sha256=bundle_sha256,
        target=bench.target.name,
        emulated=evidence.before.get("emulated") is True,
        environment=environment(evidence.before, next(iter(loaded), {}), evidence.transport),
        truth=truth,
        accuracy=accuracy_result(before, after, on_device, images, seed=bench.recipe.seed),
        accuracy_verdict=judgement.verdict,
        n_to_settle=judgement.n_to_settle,
        not_worse=not_worse(after, on_device, images),
        margin=MARGIN,
        accelerator=accelerator,
        latency=latency,
        base_latency=figures(base_rounds, loads(lines, "base")) if base_rounds else {},
        not_timed=(*NOT_TIMED, *warm, *evidence.not_timed),
        timings=f"invalid: {'; '.join(invalid)}" if invalid else "valid",
        memory=memory,
        size_bytes=evidence.size_bytes,
        energy=energy,
        energy_reason=energy_reason,
        budgets=budget_lines(limits, latency, memory, counts=not invalid),
        verdict=overall(judgement.verdict, bool(invalid)),
        reasons=(*judgement.reasons, *invalid, *warnings, *evidence.cautions),
        refused=bench.refused,
    )
    return report, rows, timings


def warnings_of(evidence: Evidence, thermal: Thermal, rounds: Sequence[Timed]) -> tuple[str, ...]:
    """Warnings that do not invalidate timings. `rounds`: the artifact's timings."""
    drifts = {metric: drift(over_question_medians(rounds, metric)) for metric in ("ttft_s", "tpot_s")}
    n_other_pixels = sum(line.kind == "answer" and line.values.get("same_pixels") is False for line in evidence.lines)
    return cautions(evidence.before, thermal, drifts, n_other_pixels)


def require_all(steps: Sequence[Step], lines: Sequence[Line], cautions: Sequence[str] = ()) -> None:
    """MpaError where a question has no answer: a comparison needs the same questions for all.

    `cautions`: what was left out of the job's output; answers that do not count are not asked again.
    """
    have = answered(lines)
    if n_missing := sum(step.key not in have for step in steps):
        reasons = [str(line.values.get("reason", "unknown")) for line in lines if line.kind == "failed"]
        why = "".join(f": {reason}" for reason in [*reasons[-1:], *cautions][:1])
        fix = "rerun with --fresh" if cautions else "rerun to resume"
        raise MpaError(f"{n_missing} of {len(steps)} answers are missing{why}; {fix}")


def answer_rows(
    task: Task,
    base: Sequence[Prediction],
    aligned: Sequence[Prediction],
    lines: Iterable[Line],
    images: Mapping[str, str],
) -> list[AnswerRow]:
    """One row for each question: the answers of base and aligned on the host, and that of the device.

    `images` as in Evidence.
    """
    said = {
        line.values["id"]: str(line.values["text"])
        for line in lines
        if line.kind == "answer" and line.variant == "artifact" and line.values["repetition"] == 0
    }
    score = get_metric(task.metric).score
    return [
        AnswerRow(
            id=was.sample_id,
            image=images.get(was.sample_id, was.image_id),
            group=None if images.get(was.sample_id, was.image_id) == was.image_id else was.image_id,
            question=was.question,
            kind=was.kind,
            answers=was.answers,
            base=was.text,
            aligned=could.text,
            artifact=said[was.sample_id],
            scores=(was.score, could.score, score(said[was.sample_id], was.answers)),
        )
        for was, could in zip(base, aligned, strict=True)
    ]


def peak_memory(lines: Iterable[Line], variant: str) -> MemoryResult:
    """Largest peak of any process of a variant (artifact or base)."""
    found = [line.values for line in lines if line.kind == "memory" and line.variant == variant]
    known = [values for values in found if isinstance(values.get("peak_bytes"), int)]
    if not known:
        why = str(found[-1].get("method")) if found else "the process ended before it reported its memory"
        return MemoryResult(peak_bytes=None, method=why)
    largest = max(known, key=lambda values: int(values["peak_bytes"]))
    return MemoryResult(peak_bytes=int(largest["peak_bytes"]), method=str(largest["method"]))


def energy_of_artifact(evidence: Evidence, invalid: bool) -> tuple[EnergyResult | None, str]:
    """Energy of the artifact's answers, and how it was read or why it was not."""
    if invalid:
        return None, "timings do not count, and energy is power over time"
    spans, tokens = busy(evidence.lines, "artifact")
    starts = [line.values["uptime_s"] for line in evidence.lines if line.kind == "loaded" and "uptime_s" in line.values]
    return energy_of(evidence.during, spans, tokens, min(starts, default=0.0))


def busy(lines: Sequence[Line], variant: str) -> tuple[list[tuple[float, float]], int]:
    """((from, to) of each process of a variant that answered, tokens generated in all of them).

    By the device's clock since boot, from the end of the load, the warm-up included; a killed process has no end.
    """
    loads = [line for line in lines if line.kind == "loaded" and "uptime_s" in line.values]
    starts: Mapping[int, float] = {one.block: one.values["uptime_s"] + one.values.get("load_s", 0.0) for one in loads}
    ends = {
        line.block: float(line.values["uptime_s"])
        for line in lines
        if line.kind == "memory" and line.variant == variant and "uptime_s" in line.values
    }
    spans = {block: (starts[block], end_s) for block, end_s in ends.items() if starts.get(block, end_s) < end_s}
    answers = [line for line in lines if line.kind == "answer" and line.variant == variant and line.block in spans]
    return list(spans.values()), sum(int(line.values.get("tokens", 0)) for line in answers)


def write_documents(
    report: BenchReport, answers: Sequence[AnswerRow], timings: Sequence[Timed], *, images: Path, folder: Path
) -> None:
    """All of them into a folder, bench.json last. `images`: the run's image folder.

    They are written beside earlier ones, which they replace in the end: until then, nothing of those is lost.
    """
    new = folder / NEW
    paths.remove(new)
    make_folder(new / THUMBNAILS)
    thumbnails: dict[str, str] = {}
    for image in dict.fromkeys(row.image for row in pick(answers)):
        opened = open_image(images / image)
        if isinstance(opened, Drop):  # its row has no thumbnail
            continue
        thumbnails[image] = f"{THUMBNAILS}/{len(thumbnails):03}.jpg"
        write_bytes(new / thumbnails[image], as_jpeg(opened, THUMBNAIL_PIXELS))
    write_jsonl(new / ANSWERS, [row.model_copy(update={"thumbnail": thumbnails.get(row.image)}) for row in answers])
    write_jsonl(new / TIMINGS, timings)
    write_json(new / BENCH, report)
    for name in (BENCH, THUMBNAILS):  # no kill leaves the one beside rows of another benchmark
        paths.remove(folder / name)
    for name in (THUMBNAILS, ANSWERS, TIMINGS, BENCH):
        paths.move(new / name, folder / name)
    paths.remove(new)


def write_jsonl(path: Path, rows: Iterable[Record]) -> None:
    """One JSON object a line."""
    with atomic_write(path) as file:
        for row in rows:
            file.write((json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n").encode())
