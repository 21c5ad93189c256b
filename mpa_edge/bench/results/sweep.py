"""Which settings to try on a device, and which one to use: the best within the budgets.

A setting is on the Pareto front when no other is at least as good in everything and better in one thing (accuracy and
tokens_per_s up, ttft_s and peak_bytes down). An unmeasured figure is the worst there is: it cannot beat another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

from mpa_edge.bench.results.records import BenchReport, Sweep, SweepPoint
from mpa_edge.config.target import ImageBudget, Target
from mpa_edge.errors import MpaError
from mpa_edge.types import Truth

Setting = dict[str, str | int]
AXES = ("threads", "image_budget", "scheme")
GRIDS = (1, 4, 9, 16, 25, 36)
# accuracy, -ttft_s, tokens_per_s, -peak_bytes: more is better
Goals = tuple[float, float, float, float]


def axes_of(text: str) -> dict[str, tuple[str, ...]]:
    """The argument of `--sweep`: axis -> values; no values where the target chooses them.

    >>> axes_of("threads=1:2,scheme")
    {'threads': ('1', '2'), 'scheme': ()}
    """
    found: dict[str, tuple[str, ...]] = {}
    for part in text.split(","):
        name, has_values, values = part.strip().partition("=")
        if name not in AXES:
            raise MpaError(f"--sweep: no axis '{name}': choose among {', '.join(AXES)}")
        found[name] = tuple(dict.fromkeys(value for value in values.split(":") if value)) if has_values else ()
        if has_values and not found[name]:
            raise MpaError(f"--sweep: {name} has no values: write {name}=A:B, or {name} alone")
    return found


def settings(axes: Mapping[str, Sequence[str]], target: Target, cores: int) -> list[Setting]:
    """Every combination. `axes`: see `axes_of`; `cores`: usable ones of the device.

    Without values, threads are powers of two up to the cores, tiles are square grids up to what the target allows.
    """
    most = target.image.max_tiles
    usual: dict[str, list[str | int]] = {
        "threads": [*sorted({min(2**i, cores) for i in range(cores.bit_length() + 1)})],
        "image_budget": [*(n for n in GRIDS if n < most), most],
        "scheme": [choice.name for choice in target.schemes],
    }
    values: dict[str, list[str | int]] = {}
    for name in AXES:
        if name in axes:
            given = axes[name]
            for text in given if name != "scheme" else ():
                if not text.isdecimal() or not 1 <= int(text) <= 256:
                    raise MpaError(f"--sweep: {name}={text} is no count: write whole numbers from 1 to 256")
            values[name] = ([*given] if name == "scheme" else [int(text) for text in given]) or usual[name]
    return [dict(zip(values, each, strict=True)) for each in product(*values.values())]


def budget_for(target: Target, tiles: int) -> ImageBudget:
    """An image budget of so many tiles; models that count pixels get as many as are in proportion."""
    pixels = max(1024, round(target.image.max_pixels * tiles / target.image.max_tiles))
    return ImageBudget(max_tiles=tiles, max_pixels=pixels)


def slug(setting: Setting) -> str:
    """Name of a setting's folder.

    >>> slug({"threads": 2, "scheme": "gguf-q8_0"})
    'threads-2_scheme-gguf-q8_0'
    """
    return "_".join(f"{name}-{value}" for name, value in setting.items())


def point_of(setting: Setting, report: BenchReport) -> SweepPoint:
    """The figures of a setting from its benchmark; timings that do not count are null."""
    counts = report.timings == "valid"
    return SweepPoint(
        settings=setting,
        accuracy=report.accuracy.artifact.value,
        ci95=report.accuracy.artifact.ci95,
        ttft_s=report.latency["ttft_s"].p50 if counts else None,
        tokens_per_s=report.latency["tokens_per_s"].p50 if counts else None,
        peak_bytes=report.memory.peak_bytes if counts else None,
        within_budgets=all(line.met is True for line in report.budgets),
        on_front=False,
    )


def sweep_of(target: str, points: Sequence[SweepPoint], truth: Truth = "labels") -> Sweep:
    """The front and the recommendation. `target`: its name; `truth`: of the reports behind the points."""
    index, reason = recommend(points)
    marked = (point.model_copy(update={"on_front": on}) for point, on in zip(points, front(points), strict=True))
    return Sweep(target=target, truth=truth, points=tuple(marked), recommended=index, reason=reason)


def goals(point: SweepPoint) -> Goals:
    """The four figures of a point, more is better, unknown is minus infinity."""
    ttft, peak = (-math.inf if value is None else -value for value in (point.ttft_s, point.peak_bytes))
    return (point.accuracy, ttft, -math.inf if point.tokens_per_s is None else point.tokens_per_s, peak)


def beats(a: Goals, b: Goals) -> bool:
    """Whether a is as good as b in all and better in one.

    >>> beats((0.6, -1.0, 5.0, -9.0), (0.6, -2.0, 5.0, -9.0)), beats((0.6, -1.0, 5.0, -9.0), (0.7, -2.0, 5.0, -9.0))
    (True, False)
    """
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


def front(points: Sequence[SweepPoint]) -> tuple[bool, ...]:
    """For each point, whether it is on the front; equal points all are."""
    values = [goals(point) for point in points]
    return tuple(not any(beats(other, value) for other in values) for value in values)


def recommend(points: Sequence[SweepPoint]) -> tuple[int | None, str]:
    """(index of the setting to use, the reason); None where none is within the budgets.

    Among those within the budgets, the most accurate one and all whose intervals overlap its own count as equally
    accurate; of these the one with the shortest time to the first token, then the fastest, the smallest, the first.
    """
    allowed = [i for i, point in enumerate(points) if point.within_budgets]
    if not allowed:
        return None, "no setting is within the budgets of the target" if points else "nothing was measured"
    best = max(allowed, key=lambda i: points[i].accuracy)
    low, high = points[best].ci95
    equal = [i for i in allowed if points[i].ci95[0] <= high and low <= points[i].ci95[1]]
    chosen = min(equal, key=lambda i: tuple(-goal for goal in goals(points[i])[1:]))
    ttft_s, figures = points[chosen].ttft_s, f"{points[chosen].accuracy:.1%}"
    if ttft_s is not None:
        figures += f", first token after {ttft_s:.2f} s"
    if len(equal) == 1:
        return chosen, f"clearly the best within the budgets ({figures})"
    if chosen == best:
        as_good = f"the quickest of {len(equal)} as good within noise"
        return chosen, f"the best within the budgets, and {as_good} ({figures})"
    return chosen, (
        f"the quickest of {len(equal)} settings within the budgets that are as good within noise "
        f"({figures}; the best has {points[best].accuracy:.1%})"
    )
