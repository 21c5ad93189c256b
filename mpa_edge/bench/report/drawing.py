"""Where the marks of a drawing lie: numbers only, in per cent of a drawing's width or height. The templates draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mpa_edge.bench.report.words import METRIC_NAMES, interval, percent, percent_range, quantity, rounded
from mpa_edge.bench.results.records import AnswerRow, BenchReport, Figure, Sweep, SweepPoint, Timed
from mpa_edge.bench.results.timing import in_rounds

MODELS = ("base", "aligned", "artifact")
PHASES = ("preprocess_s", "vision_encode_s", "prefill_s")
MOST_DOTS = 400
VARIANTS = ("artifact", "base")
STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """A linear axis with round ends."""

    low: float
    """Value at 0 %."""
    high: float
    """Value at 100 %."""
    ticks: tuple[float, ...]
    """Round values between them."""

    def at(self, value: float) -> float:
        """Per cent of the width; values outside stay at the edge."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


@dataclass(frozen=True)
class Interval:
    """One model on the accuracy drawing."""

    model: str
    """base, aligned or artifact."""
    where: str
    """Where and in which precision it answered."""
    value: str
    """In words."""
    between: str
    """The interval in words."""
    at: float
    """Per cent."""
    low: float
    """Per cent."""
    high: float
    """Per cent."""


@dataclass(frozen=True)
class Segment:
    """One phase of an answer."""

    number: int
    """Key of the table below."""
    name: str
    """In words."""
    value: str
    """In words."""
    start: float
    """Per cent."""
    width: float
    """Per cent."""


@dataclass(frozen=True)
class Stack:
    """Phases of one model, in the order they happen."""

    model: str
    """base or artifact."""
    total: str
    """In words."""
    segments: tuple[Segment, ...]
    """Of it."""


@dataclass(frozen=True)
class Dots:
    """Single samples of one metric."""

    axis: Scale
    """Seconds."""
    places: dict[str, list[float]]
    """Variant -> per cents."""
    counts: dict[str, int]
    """Variant -> number of samples."""
    beyond: int
    """Samples that end at the right edge."""


@dataclass(frozen=True)
class Point:
    """One setting of a sweep."""

    number: int
    """Key of the table below."""
    settings: str
    """In words."""
    accuracy: str
    """In words."""
    between: str
    """Interval of it."""
    ttft: str
    """In words."""
    speed: str
    """In words."""
    memory: str
    """In words."""
    within: bool
    """Of the budgets."""
    front: bool
    """Not beaten in everything by another."""
    chosen: bool
    """Recommended."""
    x: float | None
    """Per cent; None where there is no time."""
    y: float
    """Per cent from the top."""
    y_low: float
    """Lower end of the accuracy's interval, from the top."""
    y_high: float
    """Upper end."""


def scale(low: float, high: float, n: int = 5) -> Scale:
    """About `n` round ticks around a range.

    >>> scale(0.55, 0.71).ticks
    (0.55, 0.6, 0.65, 0.7, 0.75)
    >>> scale(0, 0).ticks[-1] > 0
    True
    """
    size = max(abs(low), abs(high))
    # a range that is next to nothing gets the width of its values
    span = high - low if high - low > 1e-6 * size else size
    span = span if span > 1e-9 else 1.0
    rough = span / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one for one in STEPS if one * power >= rough * 0.999) * power
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return Scale(first * step, last * step, tuple(round(i * step, digits) for i in range(first, last + 1)))


def accuracy_scale(report: BenchReport) -> Scale:
    """Around the three intervals: at least ten points wide, inside 0 and 1."""
    found = [getattr(report.accuracy, model) for model in MODELS]
    low, high = min(one.ci95[0] for one in found), max(one.ci95[1] for one in found)
    spare = max(0.02, (0.1 - (high - low)) / 2)
    return scale(max(0.0, low - spare), min(1.0, high + spare))


def accuracy_rows(report: BenchReport, axis: Scale) -> list[Interval]:
    """The three models."""
    where = {
        "base": "before, fp32 on the host",
        "aligned": "after, fp32 on the host",
        "artifact": f"{report.scheme} on the device",
    }
    rows = []
    for model in MODELS:
        one = getattr(report.accuracy, model)
        low, high = one.ci95
        marks = (axis.at(one.value), axis.at(low), axis.at(high))
        rows.append(Interval(model, where[model], percent(one.value), percent_range(one.ci95), *marks))
    return rows


def phases(latency: dict[str, Figure]) -> list[tuple[str, float]]:
    """(name, median seconds) of everything between question and last token, in order.

    What no phase claims is one of its own, so that the whole is right. Empty where nothing was timed.
    """
    medians = {name: figure.p50 for name, figure in latency.items() if figure.p50 is not None}
    if "ttft_s" not in medians and "total_s" not in medians:
        return []
    found = [(METRIC_NAMES[name], medians[name]) for name in PHASES if name in medians]
    known = sum(value for _, value in found)
    ttft = medians.get("ttft_s", known)
    before = "everything before the first token" if not found else "else, before the first token"
    rest = [(before, ttft - known), ("tokens after the first", medians.get("total_s", ttft) - max(ttft, known))]
    least = 0.02 * max(medians.get("total_s", ttft), ttft)
    return [*found, *((name, value) for name, value in rest if value > least)]


def stacks(report: BenchReport) -> list[Stack]:
    """Artifact above base on one scale; those that were timed."""
    sides = {"artifact": phases(report.latency), "base": phases(report.base_latency)}
    longest = max((sum(value for _, value in side) for side in sides.values()), default=0.0)
    names = list(dict.fromkeys(name for side in sides.values() for name, _ in side))
    made = []
    for model, side in sides.items():
        segments, start = [], 0.0
        for name, value in side if longest else ():
            width = 100 * value / longest
            number = names.index(name) + 1
            segments.append(Segment(number, name, quantity(value, "s"), round(start, 2), round(width, 2)))
            start += width
        if segments:
            made.append(Stack(model, quantity(sum(value for _, value in side), "s"), tuple(segments)))
    return made


def phase_table(found: Sequence[Stack]) -> list[tuple[int, str, list[str]]]:
    """(number, phase, value of each stack) for the legend."""
    names = {segment.name: segment.number for stack in found for segment in stack.segments}
    values = [{segment.name: segment.value for segment in stack.segments} for stack in found]
    return [(number, name, [one.get(name, "–") for one in values]) for name, number in names.items()]


def dots(timings: Sequence[Timed], metric: str) -> Dots | None:
    """Every sample that counts, at most MOST_DOTS a variant; None below two. Rare long ones end at the right edge."""
    sides = {
        name: [row.values[metric] for row in in_rounds(timings, name) if metric in row.values] for name in VARIANTS
    }
    everything = sorted(value for values in sides.values() for value in values)
    if len(everything) < 2:
        return None
    usual = 1.5 * everything[int(0.95 * (len(everything) - 1))]
    axis = scale(0.0, min(everything[-1], usual))
    thinned = {name: sorted(values)[:: 1 + len(values) // MOST_DOTS] for name, values in sides.items() if values}
    places = {name: [axis.at(value) for value in values] for name, values in thinned.items()}
    counts = {name: len(values) for name, values in sides.items()}
    return Dots(axis, places, counts, sum(value > axis.high for value in everything))


def latency_rows(report: BenchReport) -> list[tuple[str, str, list[str]]]:
    """(metric, its name, [median, interval, p90, p99, samples, median of base]) of what was measured."""
    rows = []
    for name, title in METRIC_NAMES.items():
        figure = report.latency.get(name)
        if figure is None or figure.p50 is None:
            continue
        base = report.base_latency.get(name)
        values = [quantity(value, figure.unit) for value in (figure.p50, figure.p90, figure.p99)]
        other = quantity(base.p50, base.unit) if base else "–"
        rows.append((name, title, [values[0], interval(figure), *values[1:], f"{figure.n:,}", other]))
    return rows


def settings_text(settings: dict[str, str | int]) -> str:
    """A setting on one line.

    >>> settings_text({"threads": 2, "image_budget": 1, "scheme": "onnx-int8"})
    'onnx-int8, 2 threads, 1 tile'
    """
    units = {"threads": "thread", "image_budget": "tile"}
    parts = []
    for name, value in sorted(settings.items(), key=lambda item: item[0] != "scheme"):
        many = "" if value == 1 else "s"
        parts.append(f"{value} {units[name]}{many}" if name in units else f"{value}")
    return ", ".join(parts)


def sweep_axes(sweep: Sweep) -> tuple[Scale, Scale]:
    """(TTFT axis, accuracy axis)."""
    times = [point.ttft_s for point in sweep.points if point.ttft_s is not None]
    low = min((point.ci95[0] for point in sweep.points), default=0.0)
    high = max((point.ci95[1] for point in sweep.points), default=1.0)
    return scale(0.0, 1.05 * max(times, default=1.0)), scale(max(0.0, low), min(1.0, high))


def sweep_points(sweep: Sweep) -> list[Point]:
    """All settings, the front first, each by accuracy."""
    x, y = sweep_axes(sweep)
    order = sorted(
        range(len(sweep.points)),
        key=lambda i: (i != sweep.recommended, not sweep.points[i].on_front, -sweep.points[i].accuracy, i),
    )
    numbered = enumerate(order, start=1)
    return [sweep_point(sweep.points[i], number, i == sweep.recommended, x, y) for number, i in numbered]


def sweep_point(point: SweepPoint, number: int, chosen: bool, x: Scale, y: Scale) -> Point:
    """One setting in words and where it lies."""
    heights = [round(100 - y.at(end), 2) for end in (point.accuracy, *point.ci95)]
    return Point(
        number=number,
        settings=settings_text(point.settings),
        accuracy=percent(point.accuracy),
        between=percent_range(point.ci95),
        ttft=quantity(point.ttft_s, "s"),
        speed=quantity(point.tokens_per_s, "tokens/s"),
        memory=quantity(point.peak_bytes, "bytes"),
        within=point.within_budgets,
        front=point.on_front,
        chosen=chosen,
        x=None if point.ttft_s is None else x.at(point.ttft_s),
        y=heights[0],
        y_low=heights[1],
        y_high=heights[2],
    )


def front_line(points: Sequence[Point]) -> list[tuple[float, float, float, float]]:
    """Steps (x1, y1, x2, y2) that bound what the front reaches: to the right the best accuracy so far goes on."""
    front = sorted((point.x, point.y) for point in points if point.front and point.x is not None)
    best: list[tuple[float, float]] = []
    for x, y in front:
        if not best or y < best[-1][1]:
            best.append((x, y))
    steps: list[tuple[float, float, float, float]] = []
    for (x1, y1), (x2, y2) in zip(best, [*best[1:], (100.0, best[-1][1])] if best else [], strict=True):
        steps += [(x1, y1, x2, y1), (x2, y1, x2, y2)]
    return [step for step in steps if step[:2] != step[2:]]


def tick_text(value: float, unit: str) -> str:
    """A tick of an axis, short.

    >>> tick_text(0.65, "%"), tick_text(1.5, "s"), tick_text(0.02, "s")
    ('65 %', '1.5 s', '20 ms')
    """
    if unit == "%":
        return f"{100 * value:g} %"
    if unit == "s" and 0 < value < 1:
        return f"{1000 * value:g} ms"
    return f"{value:g} {unit}" if value else f"0 {unit}"


def marks(row: AnswerRow) -> list[tuple[str, str, str, str]]:
    """(model, its answer, class, right or wrong in words) of one question."""
    texts = (row.base, row.aligned, row.artifact)
    return [(model, text, *judged(score)) for model, text, score in zip(MODELS, texts, row.scores, strict=True)]


def judged(score: float) -> tuple[str, str]:
    """(class, word) of a score.

    >>> judged(1.0), judged(0.6), judged(0.0)
    (('right', 'right'), ('partly', 'partly right, 0.600'), ('wrong', 'wrong'))
    """
    if score >= 1:
        return "right", "right"
    return ("wrong", "wrong") if score <= 0 else ("partly", f"partly right, {rounded(score)}")
