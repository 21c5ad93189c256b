"""A soak in words and as curves, for HTML and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpa_edge.bench.report import words
from mpa_edge.bench.report.drawing import Scale, scale
from mpa_edge.bench.results.soak import Soak, SoakPoint

CLASSES = {
    "steady": "holds",
    "leaks": "lost",
    "throttled": "lost",
    "slower": "inconclusive",
    "too short": "inconclusive",
}
CURVES = (
    ("tokens_per_s", "tok/s", 1.0),
    ("rss_bytes", "MB", 1e-6),
    ("temperature_c", "C", 1.0),
    ("clock_mhz", "MHz", 1.0),
)
NAMES = {"tokens_per_s": "speed", "rss_bytes": "memory", "temperature_c": "temperature", "clock_mhz": "clock"}
# text of the unit, seconds
UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))


def duration(seconds: float) -> str:
    """Seconds at a readable scale.

    >>> duration(12.3), duration(1800), duration(7200)
    ('12.3 s', '30.0 min', '2.00 h')
    """
    unit, size = next(((unit, size) for unit, size in UNITS if seconds >= 2 * size), UNITS[-1])
    return f"{words.rounded(seconds / size)} {unit}"


def headline(soak: Soak) -> str:
    """What was done and both verdicts, in one sentence."""
    at_once = "" if soak.concurrency == 1 else f", {soak.concurrency} at once"
    return (
        f"{soak.answers:,} answers in {duration(soak.seconds)}{at_once}: memory {verdict(soak.memory.verdict)}, "
        f"speed {verdict(soak.speed.verdict)}"
    )


def verdict(word: str) -> str:
    """The word of a verdict inside a sentence."""
    return {"leaks": "leaks", "slower": "falls", "throttled": "falls, the device throttles"}.get(word, f"is {word}")


def rows(soak: Soak) -> list[tuple[str, str, str]]:
    """(what, value, class) of each line."""
    at_once = f"{soak.latency_s.p50:.3g} / {soak.latency_s.p95:.3g} / {soak.latency_s.p99:.3g} s"
    found = [
        ("memory", f"{soak.memory.verdict}: {soak.memory.why}", CLASSES[soak.memory.verdict]),
        ("speed", f"{soak.speed.verdict}: {soak.speed.why}", CLASSES[soak.speed.verdict]),
        ("throughput", f"{words.rounded(soak.tokens_per_s)} tok/s, images and prompts included", ""),
        ("an answer takes, p50 / p95 / p99", at_once, ""),
    ]
    if soak.changed:
        # what is computed together is rounded differently
        alone = soak.concurrency == 1
        why = "greedy decoding repeats itself" if alone else "batches of several questions round differently"
        found.append(("answers that changed", f"{soak.changed} of {soak.answers:,}: {why}", "lost" if alone else ""))
    if soak.processes > 1:
        found.append(("processes that died", str(soak.processes - 1), "lost"))
    if soak.seconds < 0.99 * soak.asked_s:
        found.append(("ended early", f"{duration(soak.seconds)} of {duration(soak.asked_s)}", "inconclusive"))
    return [*found, *(("caution", caution, "") for caution in soak.cautions)]


@dataclass(frozen=True)
class Curve:
    """One quantity over time."""

    name: str
    unit: str
    axis: Scale
    """Values, in the unit."""
    line: str
    """Points of an SVG polyline in a box of 1000 x 100, y from the top."""
    first: float
    """Value of the first point."""
    last: float
    """Value of the last one."""


def curves(soak: Soak) -> list[Curve]:
    """Every quantity that was read at least twice."""
    made = []
    for name, unit, factor in CURVES:
        known = [(point.at_s, factor * float(getattr(point, name))) for point in soak.points if has(point, name)]
        if len(known) < 2:
            continue
        values = [value for _, value in known]
        axis, end_s = scale(min(values), max(values), 3), known[-1][0] or 1.0
        line = " ".join(f"{1000 * at_s / end_s:.1f},{100 - axis.at(value):.1f}" for at_s, value in known)
        made.append(Curve(NAMES[name], unit, axis, line, values[0], values[-1]))
    return made


def has(point: SoakPoint, name: str) -> bool:
    """Whether a point has a value."""
    return getattr(point, name) is not None


def shown_rows(soak: Soak) -> Sequence[tuple[str, str]]:
    """(what, value) for a table without colours."""
    return [(what, words.visible(value)) for what, value, _ in rows(soak)]
