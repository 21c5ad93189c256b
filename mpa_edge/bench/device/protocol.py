"""The protocol between host and device: one order for a job, one JSON line for each event.

Standard library only, for Python 3.10 or newer: this file runs on the device.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError

QUESTIONS = "questions.jsonl"
ORDER, OUT, WATCH, ERRORS = "order.json", "out.jsonl", "watch.jsonl", "err.txt"
PROBE, PROBE_AFTER = "probe.json", "probe-after.json"
MODELS = "models/"
"""Folder of a bundle that holds the exported models."""
LINE_BYTES, OUT_BYTES = 1 << 20, 64 << 20
"""Longest line of a job, and most that is read of its out.jsonl; an answer takes about 500 bytes."""
BUILD_TIMEOUT_S = 3600.0
"""Longest time for the engines of one model: TensorRT takes half an hour for a decoder on a small board."""
SAMPLE_S, NEXT_TO_NOTHING_S = 1.0, 0.001
"""Of a soak: between two samples, and what is left of one that has ended."""
LARGEST_CORE = 8191
"""Linux is built for at most so many."""
CORES = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?){0,999}")


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
    accelerators: tuple[str, ...] = ("cpu",)
    """In order of preference: the first one that the device has computes."""
    provider_options: dict[str, dict[str, str]] = field(default_factory=dict)
    """Execution provider of ONNX Runtime -> its options, from the target."""
    llama_cpp: dict[str, Any] = field(default_factory=dict)
    """Values of a `config.llama_cpp.LlamaCpp`, from the target; those that are left out have its defaults."""
    soak_s: float = 0.0
    """Seconds for which the steps are asked in turn, again and again, by one process; 0: each once."""
    concurrency: int = 1
    """Questions at once, of a soak with a server."""


@dataclass(frozen=True)
class Line:
    """One line of out.jsonl."""

    kind: str
    """used | loaded | answer | sample | memory | failed | end."""
    variant: str = ""
    """artifact or base."""
    block: int = 0
    """Number of the process, from 0."""
    values: dict[str, Any] = field(default_factory=dict)
    """loaded: load_s, cold, runtime, backend, threads, warm_up, content; answer: id, repetition, text, finish_reason,
    tokens and the timings (keys of records.METRICS) that the runtime reports; sample, of a soak: uptime_s, and what
    came since the one before: seconds, tokens, latencies_s, rss_bytes, changed; memory: peak_bytes, method; used: a
    `vlm.shared.usage.Usage` of one answer, software, build_s, gpu_bytes; failed: reason. `results.lines` has their
    types and bounds."""


def to_json(order: JobOrder) -> str:
    """The order as JSON; the same order gives the same bytes."""
    return json.dumps(asdict(order), sort_keys=True, ensure_ascii=False, indent=1)


def from_json(text: str) -> JobOrder:
    """Read an order from JSON."""
    made = json.loads(text)
    steps = tuple(Step(**step) for step in made["steps"])
    return JobOrder(**(made | {"steps": steps, "accelerators": tuple(made["accelerators"])}))


def to_line(line: Line) -> str:
    """One line, with its newline.

    >>> to_line(Line("memory", "artifact", 0, {"peak_bytes": 5, "method": "VmHWM"}))
    '{"block": 0, "kind": "memory", "values": {"method": "VmHWM", "peak_bytes": 5}, "variant": "artifact"}\\n'
    """
    return json.dumps(asdict(line), sort_keys=True, ensure_ascii=False) + "\n"


def read_lines(texts: Iterable[str | bytes]) -> Iterator[Line]:
    """Lines that have the form of one; others are skipped, as an incomplete one, which a kill leaves at the end."""
    return (line for line in map(parse_line, texts) if line is not None)


def parse_line(text: str | bytes) -> Line | None:
    """One line; None where it has not the form of one. Its values are checked by who uses them.

    >>> parse_line('{"kind": "end", "variant": "", "block": true, "values": {}}') is None
    True
    """
    try:
        made = json.loads(text)
        line = Line(**made)
    except (ValueError, TypeError, RecursionError):
        return None
    types = ((line.kind, str), (line.variant, str), (line.block, int), (line.values, dict))
    return line if all(type(value) is kind for value, kind in types) else None


def answered(lines: Iterable[Line]) -> set[tuple[str, str, int]]:
    """Keys of the steps that have an answer."""
    found = (
        (line.variant, line.values.get("id"), line.values.get("repetition")) for line in lines if line.kind == "answer"
    )
    return {(variant, id_, again) for variant, id_, again in found if isinstance(id_, str) and type(again) is int}


def content_id(files: Mapping[str, str]) -> str:
    """Identifies the models and questions of a bundle, without its code. `files`: path inside it -> SHA-256."""
    counts = sorted(
        f"{digest}  {name}\n" for name, digest in files.items() if name.startswith(MODELS) or name == QUESTIONS
    )
    return hashlib.sha256("".join(counts).encode()).hexdigest()


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
    text = "".join(text.split())
    found: set[int] = set()
    for part in text.split(",") if CORES.fullmatch(text) else ():
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    if not found or max(found) > LARGEST_CORE:
        raise MpaError(f"cpu.cores is '{text[:80]}': write cores as 4-7 or 0,2, none above {LARGEST_CORE}")
    return found
