"""From the lines of a job and the host's answers to the records of a benchmark: no device, no files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mpa_edge.bench.device.protocol import Line, Step
from mpa_edge.bench.results.records import AnswerRow, MemoryResult
from mpa_edge.errors import MpaError
from mpa_edge.metrics import get_metric
from mpa_edge.tasks import Task
from mpa_edge.types import Prediction


def require_all(steps: Sequence[Step], lines: Sequence[Line]) -> None:
    """MpaError where a question has no answer: a comparison needs the same questions for all."""
    have = {(line.variant, line.values["id"], line.values["repetition"]) for line in lines if line.kind == "answer"}
    missing = [step for step in steps if step.key not in have]
    if missing:
        reasons = [str(line.values.get("reason", "unknown")) for line in lines if line.kind == "failed"]
        why = f": {reasons[-1]}" if reasons else ""
        raise MpaError(f"{len(missing)} of {len(steps)} answers are missing{why}; rerun to resume")


def answer_rows(
    task: Task, base: Sequence[Prediction], aligned: Sequence[Prediction], lines: Iterable[Line]
) -> list[AnswerRow]:
    """One row for each question: the answers of base and aligned on the host, and that of the device."""
    said = {
        line.values["id"]: str(line.values["text"])
        for line in lines
        if line.kind == "answer" and line.variant == "artifact" and line.values["repetition"] == 0
    }
    score = get_metric(task.metric).score
    return [
        AnswerRow(
            id=was.sample_id,
            image=was.image_id,
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


def busy(lines: Sequence[Line], variant: str) -> tuple[list[tuple[float, float]], int]:
    """((from, to) of each process of a variant that answered, tokens generated in all of them).

    By the device's clock since boot, from the end of the load, the warm-up included; a killed process has no end.
    """
    loads = [line for line in lines if line.kind == "loaded" and "uptime_s" in line.values]
    starts: Mapping[int, float] = {one.block: one.values["uptime_s"] + one.values.get("load_s", 0.0) for one in loads}
    ends = [line for line in lines if line.kind == "memory" and line.variant == variant and "uptime_s" in line.values]
    spans = {line.block: (starts[line.block], line.values["uptime_s"]) for line in ends if line.block in starts}
    answers = [line for line in lines if line.kind == "answer" and line.variant == variant and line.block in spans]
    return list(spans.values()), sum(int(line.values.get("tokens", 0)) for line in answers)
