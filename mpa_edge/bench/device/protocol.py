"""What goes to the device and what comes back: one order for a job, one JSON line for each thing that happened.

Standard library only, and no newer Python than 3.10: the runner on the device imports this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

ORDER, OUT, PROBE, WATCH, ERRORS = "order.json", "out.jsonl", "probe.json", "watch.jsonl", "err.txt"


@dataclass(frozen=True)
class Step:
    """One question to one model."""

    variant: str
    """Key of `JobOrder.variants`."""
    id: str
    """Of the question."""
    repetition: int = 0
    """From 0; (variant, id, repetition) is asked once."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes it one of a kind."""
        return (self.variant, self.id, self.repetition)


@dataclass(frozen=True)
class JobOrder:
    """Everything that a job on the device has to know beside the bundle."""

    variants: dict[str, str]
    """artifact and base -> folder inside the bundle."""
    steps: tuple[Step, ...]
    """In this order; neighbours of one variant share a process, that loads once and warms up once."""
    threads: int | None = None
    """CPU threads; None: what the artifact asks for."""
    cores: str | None = None
    """Cores to pin to, as taskset writes them (4-7,9); None: wherever the system puts them."""
    warm_up: int = 1
    """Answers that each process gives before those that count."""
    answer_timeout_s: float = 600.0
    """A single answer that takes longer is a runner that hangs."""


@dataclass(frozen=True)
class Line:
    """One line of out.jsonl."""

    kind: str
    """loaded | answer | memory | failed | end."""
    variant: str = ""
    """Which model."""
    block: int = 0
    """Number of the process, from 0."""
    values: dict[str, Any] = field(default_factory=dict)
    """loaded: load_s, cold, runtime, backend, threads, warm_up; answer: id, repetition, text, finish_reason, tokens and
    the timings (keys of records.METRICS) that the runtime says; memory: peak_bytes, method; failed: reason; end: -."""


def to_json(order: JobOrder) -> str:
    """The order as a document; the same order gives the same bytes."""
    return json.dumps(asdict(order), sort_keys=True, ensure_ascii=False, indent=1)


def from_json(text: str) -> JobOrder:
    """The order of a document."""
    made = json.loads(text)
    return JobOrder(**(made | {"steps": tuple(Step(**step) for step in made["steps"])}))


def to_line(line: Line) -> str:
    """One line, with its newline.

    >>> to_line(Line("memory", "artifact", 0, {"peak_bytes": 5, "method": "VmHWM"}))
    '{"block": 0, "kind": "memory", "values": {"method": "VmHWM", "peak_bytes": 5}, "variant": "artifact"}\\n'
    """
    return json.dumps(asdict(line), sort_keys=True, ensure_ascii=False) + "\n"


def read_lines(texts: Iterable[str]) -> Iterator[Line]:
    """Whole lines; a torn one, as a kill leaves it at the end, is left out."""
    for text in texts:
        try:
            made = json.loads(text)
            yield Line(**made)
        except (ValueError, TypeError):
            continue


def answered(lines: Iterable[Line]) -> set[tuple[str, str, int]]:
    """Keys of the steps that have their answer."""
    return {(line.variant, line.values["id"], line.values["repetition"]) for line in lines if line.kind == "answer"}


def blocks(steps: Iterable[Step]) -> list[tuple[Step, ...]]:
    """Neighbours of one variant: one process each.

    >>> [len(block) for block in blocks([Step("artifact", "1"), Step("artifact", "2"), Step("base", "1")])]
    [2, 1]
    """
    found: list[list[Step]] = []
    for step in steps:
        if found and found[-1][-1].variant == step.variant:
            found[-1].append(step)
        else:
            found.append([step])
    return [tuple(block) for block in found]
