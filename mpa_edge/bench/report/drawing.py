"""Where the marks of a drawing lie, in per cent of its width or height. The templates draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpa_edge.bench.report.words import METRIC_NAMES
from mpa_edge.bench.results.records import BenchReport, Figure, Sweep, SweepPoint, Timed
from mpa_edge.bench.results.timing import in_rounds

PHASES = ("preprocess_s", "vision_encode_s", "prefill_s")
MOST_DOTS = 400
STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """A linear axis with round limits."""

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


def tick_text(value: float, unit: str) -> str:
    """A tick of an axis, short.

    >>> tick_text(0.65, "%"), tick_text(1.5, "s"), tick_text(0.02, "s")
    ('65 %', '1.5 s', '20 ms')
    """
    if unit == "%":
        return f"{100 * value:g} %"
    if unit == "s" and 0 < value < 1:
        return f"{1000 * value:g} ms"
    return f"{value:g} {unit}"


def accuracy_scale(report: BenchReport) -> Scale:
    """Around the three intervals: at least ten points wide, inside 0 and 1."""
    found = [report.accuracy.base, report.accuracy.aligned, report.accuracy.artifact]
    low, high = min(one.ci95[0] for one in found), max(one.ci95[1] for one in found)
    spare = max(0.02, (0.1 - (high - low)) / 2)
    return scale(max(0.0, low - spare), min(1.0, high + spare))


# --- time -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """One phase of an answer, in a bar of all of them."""

    number: int
    """Key of the table below."""
    seconds: float
    """Median."""
    start: float
    """Per cent."""
    width: float
    """Per cent."""


def phases(latency: Mapping[str, Figure]) -> dict[str, float]:
    """Phase -> median seconds of everything between question and last token, in order; empty where nothing was timed.

    What no phase accounts for is one of its own, so that they add up to the whole.
    """
    medians = {name: figure.p50 for name, figure in latency.items() if figure.p50 is not None}
    if "ttft_s" not in medians and "total_s" not in medians:
        return {}
    found = {METRIC_NAMES[name]: medians[name] for name in PHASES if name in medians}
    known = sum(found.values())
    ttft_s = medians.get("ttft_s", known)
    total_s = medians.get("total_s", ttft_s)
    rest = {
        "other, before the first token" if found else "everything before the first token": ttft_s - known,
        "tokens after the first": total_s - max(ttft_s, known),
    }
    return found | {name: value for name, value in rest.items() if value > 0.02 * max(total_s, ttft_s)}


def stacks(report: BenchReport) -> dict[str, dict[str, Segment]]:
    """Model -> phase -> segment, artifact and base on one scale; those that were timed."""
    sides = {"artifact": phases(report.latency), "base": phases(report.base_latency)}
    longest = max(sum(side.values()) for side in sides.values())
    numbers = {name: i for i, name in enumerate(phase_names(sides), start=1)}
    made: dict[str, dict[str, Segment]] = {}
    for model, side in sides.items():
        start = 0.0
        for name, seconds in side.items() if longest else ():
            width = 100 * seconds / longest
            made.setdefault(model, {})[name] = Segment(numbers[name], seconds, round(start, 2), round(width, 2))
            start += width
    return made


def phase_names(sides: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Every phase of any model, in the order of their numbers; `sides`: model -> phase -> anything."""
    return list(dict.fromkeys(name for side in sides.values() for name in side))


@dataclass(frozen=True)
class Dots:
    """Single samples of one metric."""

    axis: Scale
    """Seconds."""
    places: dict[str, list[float]]
    """artifact or base -> per cents."""
    counts: dict[str, int]
    """artifact or base -> number of samples."""
    beyond: int
    """Samples that are drawn at the right edge."""


def dots(timings: Sequence[Timed], metric: str) -> Dots | None:
    """Every sample that counts, at most MOST_DOTS a variant; None below two. Outliers are drawn at the right edge."""
    sides = {
        name: [row.values[metric] for row in in_rounds(timings, name) if metric in row.values]
        for name in ("artifact", "base")
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


# --- sweep ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where one setting of a sweep lies."""

    number: int
    """Key of the table below."""
    point: SweepPoint
    """The setting with its figures."""
    chosen: bool
    """Recommended."""
    x: float | None
    """Per cent; None where there is no time."""
    y: tuple[float, float, float]
    """Accuracy and its interval, in per cent from the top."""


def sweep_axes(sweep: Sweep) -> tuple[Scale, Scale]:
    """(TTFT axis, accuracy axis)."""
    times = [point.ttft_s for point in sweep.points if point.ttft_s is not None]
    low = min((point.ci95[0] for point in sweep.points), default=0.0)
    high = max((point.ci95[1] for point in sweep.points), default=1.0)
    return scale(0.0, 1.05 * max(times, default=1.0)), scale(max(0.0, low), min(1.0, high))


def sweep_places(sweep: Sweep) -> list[Place]:
    """All settings: the recommended one, the front, the others; each by accuracy."""
    x, y = sweep_axes(sweep)
    points = sorted(
        enumerate(sweep.points),
        key=lambda one: (one[0] != sweep.recommended, not one[1].on_front, -one[1].accuracy, one[0]),
    )
    places = []
    for number, (index, point) in enumerate(points, start=1):
        value, low, high = (round(100 - y.at(end), 2) for end in (point.accuracy, *point.ci95))
        left = None if point.ttft_s is None else x.at(point.ttft_s)
        places.append(Place(number, point, index == sweep.recommended, left, (value, low, high)))
    return places


def front_line(places: Sequence[Place]) -> list[tuple[float, float, float, float]]:
    """Steps (x1, y1, x2, y2) that bound what the front reaches: further right, the best accuracy so far holds."""
    front = sorted((place.x, place.y[0]) for place in places if place.point.on_front and place.x is not None)
    best: list[tuple[float, float]] = []
    for x, y in front:
        if not best or y < best[-1][1]:
            best.append((x, y))
    steps: list[tuple[float, float, float, float]] = []
    for (x1, y1), (x2, y2) in zip(best, [*best[1:], (100.0, best[-1][1])] if best else [], strict=True):
        steps += [(x1, y1, x2, y1), (x2, y1, x2, y2)]
    return [step for step in steps if step[:2] != step[2:]]
