"""The documents of a benchmark in runs/NAME/bench/TARGET/SCHEME/, printed with `--json`, read by the report.

bench.json is a BenchReport, answers.jsonl one AnswerRow a line, timings.jsonl one Timed a line, thumbnails/ a small
JPEG of each sampled question's image; sweep.json, a Sweep, lies one folder higher: it compares settings of one target.
"""

from __future__ import annotations

from typing import Any, Literal

from mpa_edge.config.target import BudgetName
from mpa_edge.evaluation.review import ReviewFigures
from mpa_edge.metrics.gain import AccuracyResult, Word
from mpa_edge.types import Record, Truth

BenchWord = Word | Literal["invalid"]
BENCH, ANSWERS, TIMINGS, SWEEP = "bench.json", "answers.jsonl", "timings.jsonl", "sweep.json"
THUMBNAILS = "thumbnails"
# metric -> unit; each report has every metric, with n = 0 and nulls where the runtime does not report it
METRICS = {
    "load_s": "s",
    "preprocess_s": "s",
    "vision_encode_s": "s",
    "prefill_s": "s",
    "ttft_s": "s",
    "tpot_s": "s/token",
    "total_s": "s",
    "tokens_per_s": "tokens/s",
    "tokens": "tokens",
}


class Figure(Record):
    """One quantity over all its repetitions."""

    unit: str
    """s, s/token, tokens/s, tokens."""
    n: int
    """Samples behind it."""
    p50: float | None
    """Median; null where nothing was measured."""
    p90: float | None
    """Nine of ten are below."""
    p99: float | None
    """99 of 100 are below."""
    ci95: tuple[float, float] | None
    """95 % bootstrap interval of the median; null below two samples."""


class MemoryResult(Record):
    """Peak memory of the process that answered."""

    peak_bytes: int | None
    """Null where it could not be read."""
    method: str
    """How it was read: VmHWM, or max(VmHWM, VmRSS + VmSwap); or why it was not."""


class EnergyResult(Record):
    """Energy of the answers, where a rail or the battery could be read."""

    joules_per_token: float
    """Of generated tokens, idle power subtracted."""
    mean_power_w: float
    """While it answered."""
    idle_power_w: float
    """Before it began."""
    source: str
    """The rails that were added up, or the battery."""
    samples: int
    """Readings."""


class BudgetLine(Record):
    """One budget of the target against what was measured."""

    name: BudgetName
    """Key of the target's budgets."""
    limit: float
    """What is allowed (memory, time) or required (speed)."""
    why: str
    """The arithmetic behind it: a share of what the board can do for this model, or set in the target."""
    measured: float | None
    """Null where it was not measured, or must not count."""
    met: bool | None
    """Null where it was not measured, or must not count."""
    by: float | None
    """How far inside (positive) or outside (negative), as a share of the limit."""


class AcceleratorResult(Record):
    """What was asked to compute, and what did, by the runtime's own profile of one answer that is not timed."""

    asked: tuple[str, ...]
    """In order of preference."""
    there: tuple[str, ...]
    """Accelerators whose provider is installed on the device; empty where the runtime does not say."""
    used: str
    """The first of the asked ones that the device has."""
    device: str
    """Its name, as the runtime reports it; empty where it does not."""
    missing: tuple[str, ...]
    """Preferred ones that the device does not have, each with what to do about it."""
    node_share: dict[str, float] | None
    """Accelerator -> share of the graphs' nodes, or of the model's layers; null where it is not reported."""
    time_share: dict[str, float] | None
    """Accelerator -> share of the runtime's time; null where it is not reported."""
    elsewhere: tuple[str, ...]
    """Operators that ran on another one than `used`, each with its share of the time, the longest first."""
    software: bool
    """The device is a program that pretends to be a GPU."""
    build_s: float | None
    """Building its engines took so long, once: in no figure of the latency; null where nothing is built."""
    gpu_memory_bytes: int | None
    """GPU memory of the process; null where it is not reported, or is the same as the other memory."""


class Environment(Record):
    """What was actually used, not what was requested. What cannot be read is "unknown" or null."""

    machine: str
    """Architecture of the processor, as uname -m."""
    cpu: str
    """Its name."""
    cpu_features: tuple[str, ...]
    """Instruction sets that change results: avx512_vnni, asimddp, sme and the like."""
    cores: int
    """Usable ones."""
    os: str
    """Name and version."""
    runtime: str
    """Library with version."""
    backend: str
    """Execution provider or backend that really ran."""
    threads: int | None
    """Of the runtime."""
    transport: str
    """local, ssh HOST, adb SERIAL."""
    readings: dict[str, Any]
    """Governor, power mode, temperatures, throttling, battery; {"value": null, "reason": "..."} for what is unknown."""


class BenchReport(Record):
    """What `mpa-edge bench --json` prints."""

    schema_version: Literal[1] = 1
    """Of this document."""
    run: str
    """Name of the run."""
    scheme: str
    """Name of the scheme."""
    created: str
    """When, UTC, ISO 8601, by the host's clock."""
    bundle_sha256: str
    """Of everything that was sent to the device."""
    target: str
    """Name of the target."""
    emulated: bool
    """An emulator ran it: accuracy counts, timings do not."""
    environment: Environment
    """Of the device."""
    truth: Truth = "labels"
    """What the answers are compared with; teacher: the accuracy is none, but the agreement with the teacher."""
    review: ReviewFigures | None = None
    """What a review says; null unless the truth is reviewed: then the accuracies are estimates of the true ones."""
    accuracy: AccuracyResult
    """Three models on the same questions."""
    accuracy_verdict: Word
    """Of the accuracy alone; an emulated run has one as well."""
    n_to_settle: int | None
    """Questions that would settle an inconclusive accuracy; null otherwise."""
    not_worse: bool
    """Not worse than aligned by more than the margin, by all answers: a review of some does not change it."""
    margin: float
    """The margin, in points of accuracy from 0 to 1."""
    accelerator: AcceleratorResult | None = None
    """What computed the artifact; null where only the CPU was asked, or the runtime reports nothing."""
    latency: dict[str, Figure]
    """Of the artifact; keys are those of METRICS."""
    base_latency: dict[str, Figure]
    """Of base in the same scheme, measured alternately; empty where there was none."""
    not_timed: tuple[str, ...]
    """What the figures leave out, in words."""
    timings: str
    """valid, or `invalid: ` with the reason."""
    memory: MemoryResult
    """Peak of the artifact's process."""
    size_bytes: int
    """Of the artifact on the disk."""
    energy: EnergyResult | None
    """Null where it could not be read."""
    energy_reason: str
    """Why there is none, or how it was read."""
    budgets: tuple[BudgetLine, ...]
    """One for each budget of the target."""
    verdict: BenchWord
    """lost where the accuracy is; else invalid where timings are; else the accuracy's word."""
    reasons: tuple[str, ...]
    """Why, and what to be careful with."""
    refused: tuple[str, ...] = ()
    """Schemes that were tried for the export before this one, each with the reason against it."""


class AnswerRow(Record):
    """One question with three answers."""

    id: str
    """Of the question."""
    image: str
    """Path inside the image folder."""
    question: str
    """As it was asked."""
    kind: str | None
    """Question kind of a generated set."""
    answers: tuple[str, ...]
    """Accepted ones."""
    base: str
    """Answer of base, fp32 on the host."""
    aligned: str
    """Answer of aligned, fp32 on the host."""
    artifact: str
    """Answer on the device."""
    scores: tuple[float, float, float]
    """Of base, aligned, artifact: 0 to 1."""
    thumbnail: str | None = None
    """thumbnails/NAME.jpg where it is one of the samples that the report shows."""
    group: str | None = None
    """Group of near-duplicates that the image belongs to; null: it is its own."""

    @property
    def cluster(self) -> str:
        """Questions with the same one are not independent."""
        return self.group or self.image


class Timed(Record):
    """The timing of one answer."""

    variant: Literal["artifact", "base"]
    """Which model."""
    id: str
    """Of the question."""
    repetition: int
    """From 0."""
    values: dict[str, float]
    """Metric of METRICS -> value; what the runtime does not report is left out."""


class SweepPoint(Record):
    """One setting, measured."""

    settings: dict[str, str | int]
    """threads, image_budget (max tiles), scheme: those that were swept."""
    accuracy: float
    """Of the artifact, 0 to 1."""
    ci95: tuple[float, float]
    """Of it."""
    ttft_s: float | None
    """Median; null where timings do not count."""
    tokens_per_s: float | None
    """Median; null where timings do not count."""
    peak_bytes: int | None
    """Peak memory."""
    within_budgets: bool
    """Of the target; a budget that cannot be judged is not met."""
    on_front: bool
    """No other point is better in one and as good in all."""


class Sweep(Record):
    """All settings of a sweep."""

    schema_version: Literal[1] = 1
    """Of this document."""
    target: str
    """Name of the target."""
    truth: Truth = "labels"
    """As in BenchReport."""
    points: tuple[SweepPoint, ...]
    """In the order they were measured."""
    recommended: int | None
    """Index of the setting to use; null where none is within budgets."""
    reason: str
    """Why this one, or why none."""
