"""The lines that a job left in out.jsonl, each checked before anything is computed from it.

A device may be broken, out of date or hostile. A line counts if its values have the types and bounds below and the
job's order asked for it; of two lines about the same thing the first counts. The others are named as a caution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, WrapValidator

from mpa_edge.bench.device.protocol import LARGEST_CORE, LINE_BYTES, OUT, OUT_BYTES, JobOrder, Line, parse_line

# processes beyond one for each question: those that were started again
MORE_PROCESSES = 1000
LONGEST_ANSWER = 100_000


def one_line(text: str) -> str:
    r"""Text of a device for a terminal: on one line, without control characters, at most 400 characters.

    >>> one_line("out of\n memory\x1b[2J")
    'out of memory [2J'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:400]


def _or_none(value: Any, check: Callable[[Any], Any]) -> Any:
    try:
        return check(value)
    except ValidationError:
        return None


Words = Annotated[str, AfterValidator(one_line)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
# a figure that a runtime reports wrongly is left out; its answer counts
Figure = Annotated[Annotated[float, Field(ge=0, le=1e9)] | None, WrapValidator(_or_none)]


class DeviceValues(BaseModel):
    """Base of a line's values. Keys that a newer runner adds are left out."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Loaded(DeviceValues):
    """A process has loaded its model."""

    load_s: Figure = None
    cold: bool = False
    runtime: Words = "unknown"
    backend: Words = "unknown"
    threads: Annotated[int, Field(ge=1, le=LARGEST_CORE)] | None = None
    cores: Annotated[list[Annotated[int, Field(ge=0, le=LARGEST_CORE)]], Field(max_length=LARGEST_CORE + 1)] = []
    uptime_s: Seconds | None = None
    content: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """`protocol.content_id` of the bundle there."""


class Answer(DeviceValues):
    """One answer, with what the runtime reports about it (keys of records.METRICS)."""

    id: str
    repetition: int
    text: Annotated[str, Field(max_length=LONGEST_ANSWER)]
    tokens: Annotated[int, Field(ge=0, le=LONGEST_ANSWER)] = 0
    same_pixels: bool | None = None
    preprocess_s: Figure = None
    vision_encode_s: Figure = None
    prefill_s: Figure = None
    ttft_s: Figure = None
    tpot_s: Figure = None
    total_s: Figure = None
    tokens_per_s: Figure = None


Name = Annotated[str, Field(max_length=60), AfterValidator(one_line)]


class Used(DeviceValues):
    """What computed one answer (`vlm.shared.usage.Usage`)."""

    accelerator: Name
    device: Words = ""
    missing: Annotated[list[Words], Field(max_length=20)] = []
    nodes: Annotated[dict[Name, Annotated[int, Field(ge=0, le=1 << 30)]], Field(max_length=20)] | None = None
    seconds: Annotated[dict[Name, Seconds], Field(max_length=20)] | None = None
    elsewhere: Annotated[list[Annotated[tuple[Words, Seconds], Field(strict=False)]], Field(max_length=20)] = []
    there: Annotated[list[Name], Field(max_length=20)] = []
    software: bool = False
    build_s: Figure = None
    gpu_bytes: Annotated[int, Field(ge=0, le=1 << 50)] | None = None


class Memory(DeviceValues):
    """The peak of a process, at its end."""

    peak_bytes: Annotated[int, Field(ge=0, le=1 << 50)] | None = None
    method: Words = "unknown"
    uptime_s: Seconds | None = None


class Sample(DeviceValues):
    """What came since the sample before it, in a soak."""

    uptime_s: Seconds
    seconds: Annotated[float, Field(gt=0, le=1e6)]
    tokens: Annotated[int, Field(ge=0, le=1 << 40)]
    latencies_s: Annotated[list[Seconds], Field(min_length=1, max_length=100_000)]
    rss_bytes: Annotated[int, Field(ge=0, le=1 << 50)] | None = None
    changed: Annotated[int, Field(ge=0, le=100_000)] = 0


class Failed(DeviceValues):
    """Why there is no answer."""

    reason: Words = "unknown"


KINDS = {
    kind: TypeAdapter(model)
    for kind, model in (
        ("used", Used),
        ("loaded", Loaded),
        ("answer", Answer),
        ("sample", Sample),
        ("memory", Memory),
        ("failed", Failed),
    )
}


@dataclass(frozen=True)
class JobLines:
    """What counts of a job's output."""

    lines: tuple[Line, ...]
    """In the order of the file; of each variant only the last `failed`."""
    cautions: tuple[str, ...]
    """What was left out, in words."""


def checked_lines(path: Path, order: JobOrder) -> JobLines:
    """The lines of out.jsonl that count for an order. Nothing in the file raises an error."""
    asked = {step.key for step in order.steps}
    kept: dict[tuple[Any, ...], Line] = {}
    wrong = unasked = again = 0
    for text in whole_lines(path):
        line = parse_line(text)
        if line is None or line.kind not in (*KINDS, "end"):
            wrong += 1
            continue
        if line.kind == "end":
            continue
        try:
            values = KINDS[line.kind].validate_python(line.values).model_dump(exclude_none=True)
        except ValidationError:
            wrong += 1
            continue
        key: tuple[Any, ...] = (line.kind, line.variant, line.block)
        if line.kind == "answer":
            key = (line.variant, values["id"], values["repetition"])
        elif line.kind == "sample":
            key = (*key, values["uptime_s"])
        if (
            line.variant not in order.variants
            or (line.kind == "answer" and key not in asked)
            or (line.kind == "sample" and not order.soak_s)
            or not 0 <= line.block < len(asked) + MORE_PROCESSES
        ):
            unasked += 1
        elif line.kind == "failed":
            kept[("failed", line.variant)] = Line("failed", line.variant, line.block, values)
        elif key in kept:
            again += 1
        else:
            kept[key] = Line(line.kind, line.variant, line.block, values)
    cautions = []
    if wrong:
        cautions.append(f"{wrong} lines of the device's {OUT} are not the runner's and do not count")
    if unasked:
        cautions.append(f"{unasked} lines of the device's {OUT} answer what was not asked and do not count")
    if again:
        cautions.append(f"{again} lines of the device's {OUT} repeat earlier ones and do not count")
    if path.is_file() and path.stat().st_size > OUT_BYTES:
        cautions.append(f"the device's {OUT} is longer than {OUT_BYTES >> 20} MiB: the rest does not count")
    return JobLines(tuple(kept.values()), tuple(cautions))


def whole_lines(path: Path, most_bytes: int = OUT_BYTES) -> Iterator[bytes]:
    """The lines of a file within its first `most_bytes`; an empty one stands for a line longer than LINE_BYTES.

    A last line that a kill cut off is left out.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        while (line := file.readline(LINE_BYTES)) and file.tell() <= most_bytes:
            if line.endswith(b"\n") or line.endswith(b"}"):
                yield line
                continue
            if len(line) == LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(LINE_BYTES)
                yield b""
