"""The protocol between host and device: one order for a job, one JSON line for each event.

Standard library only, for Python 3.10 or newer: this file runs on the device.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError

QUESTIONS = "questions.jsonl"
ORDER, OUT, WATCH, ERRORS = "order.json", "out.jsonl", "watch.jsonl", "err.txt"
PROBE, PROBE_AFTER = "probe.json", "probe-after.json"


@dataclass(frozen=True)
class Step:
    """One question to one model."""

    variant: str
    """Key of `JobOrder.variants`."""
    id: str
    """Id of the question."""
    repetition: int = 0
    """From 0; each (variant, id, repetition) is asked once."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Identifies the step within a job."""
        return (self.variant, self.id, self.repetition)


@dataclass(frozen=True)
class JobOrder:
    """What a job on the device needs besides the bundle."""

    variants: dict[str, str]
    """artifact and base -> folder inside the bundle."""
    steps: tuple[Step, ...]
    """Asked in this order; consecutive steps of one variant share a process, which loads once and warms up once."""
    threads: int | None = None
    """CPU threads; None: the setting of the artifact."""
    cores: str | None = None
    """Cores to pin to, in taskset's notation (4-7,9); None: not pinned."""
    warm_up: int = 1
    """Uncounted answers at the start of each process."""
    answer_timeout_s: float = 600.0
    """A process that takes longer for one answer counts as hung."""


@dataclass(frozen=True)
class Line:
    """One line of out.jsonl."""

    kind: str
    """loaded | answer | memory | failed | end."""
    variant: str = ""
    """artifact or base."""
    block: int = 0
    """Number of the process, from 0."""
    values: dict[str, Any] = field(default_factory=dict)
    """loaded: load_s, cold, runtime, backend, threads, warm_up; answer: id, repetition, text, finish_reason, tokens and
    the timings (keys of records.METRICS) that the runtime reports; memory: peak_bytes, method; failed: reason."""


def to_json(order: JobOrder) -> str:
    """The order as JSON; the same order gives the same bytes."""
    return json.dumps(asdict(order), sort_keys=True, ensure_ascii=False, indent=1)


def from_json(text: str) -> JobOrder:
    """Read an order from JSON."""
    made = json.loads(text)
    return JobOrder(**(made | {"steps": tuple(Step(**step) for step in made["steps"])}))


def to_line(line: Line) -> str:
    """One line, with its newline.

    >>> to_line(Line("memory", "artifact", 0, {"peak_bytes": 5, "method": "VmHWM"}))
    '{"block": 0, "kind": "memory", "values": {"method": "VmHWM", "peak_bytes": 5}, "variant": "artifact"}\\n'
    """
    return json.dumps(asdict(line), sort_keys=True, ensure_ascii=False) + "\n"


def read_lines(texts: Iterable[str]) -> Iterator[Line]:
    """Complete lines; an incomplete one, which a kill leaves at the end, is skipped."""
    for text in texts:
        try:
            made = json.loads(text)
            yield Line(**made)
        except (ValueError, TypeError):
            continue


def answered(lines: Iterable[Line]) -> set[tuple[str, str, int]]:
    """Keys of the steps that have an answer."""
    return {(line.variant, line.values["id"], line.values["repetition"]) for line in lines if line.kind == "answer"}


def blocks(steps: Iterable[Step]) -> list[tuple[Step, ...]]:
    """Consecutive steps of one variant, which share a process.

    >>> [len(block) for block in blocks([Step("artifact", "1"), Step("artifact", "2"), Step("base", "1")])]
    [2, 1]
    """
    return [tuple(block) for _, block in groupby(steps, key=lambda step: step.variant)]


def read_questions(bundle: Path) -> dict[str, dict[str, Any]]:
    """The questions of a bundle by id. MpaError where the file is missing or damaged."""
    path = bundle / QUESTIONS
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return {row["id"]: row for row in rows}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MpaError(f"{path} is missing or damaged: send the bundle again") from error


def parse_cores(text: str) -> set[int]:
    """Cores in taskset's notation. MpaError where that is no list of cores.

    >>> sorted(parse_cores("4-6,9"))
    [4, 5, 6, 9]
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise MpaError(f"cpu.cores is '{text}': write cores as 4-7 or 0,2")
        found |= set(range(int(first), int(last or first) + 1))
    return found
