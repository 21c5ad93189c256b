"""From what came back and what the host knows to the records of a benchmark: no device, no files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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
        raise MpaError(f"{len(missing)} of {len(steps)} answers are missing{why}; run the same command again to go on")


def answer_rows(
    task: Task, base: Sequence[Prediction], aligned: Sequence[Prediction], lines: Iterable[Line]
) -> list[AnswerRow]:
    """One row a question: the answers of the host's two models, and that of the device."""
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
    """Largest peak of any process of a variant."""
    found = [line.values for line in lines if line.kind == "memory" and line.variant == variant]
    known = [values for values in found if isinstance(values.get("peak_bytes"), int)]
    if not known:
        why = str(found[-1].get("method")) if found else "the process ended before it could say"
        return MemoryResult(peak_bytes=None, method=why)
    largest = max(known, key=lambda values: int(values["peak_bytes"]))
    return MemoryResult(peak_bytes=int(largest["peak_bytes"]), method=str(largest["method"]))


@dataclass(frozen=True)
class Span:
    """A time on the device, by its own clock since boot."""

    start_uptime_s: float
    end_uptime_s: float
    tokens: int
    """Generated in it."""


def busy(lines: Sequence[Line], variant: str) -> list[Span]:
    """When a variant's processes answered, where they say it: from the end of the load, the warm-up included."""
    spans = []
    starts: Mapping[int, float] = {
        line.block: line.values["uptime_s"] + line.values.get("load_s", 0.0)
        for line in lines
        if line.kind == "loaded" and "uptime_s" in line.values
    }
    for line in lines:
        if line.kind == "memory" and line.variant == variant and line.block in starts and "uptime_s" in line.values:
            answers = [a for a in lines if a.kind == "answer" and a.block == line.block and a.variant == variant]
            tokens = sum(int(a.values.get("tokens", 0)) for a in answers)
            spans.append(Span(starts[line.block], line.values["uptime_s"], tokens))
    return spans
