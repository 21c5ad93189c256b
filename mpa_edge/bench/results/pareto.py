"""Which setting to use: the Pareto front of accuracy, speed and memory, and one point of it within the budgets.

A point is on the front when no other is at least as good in all and better in one (accuracy and tokens_per_s up, ttft_s
and peak_bytes down). A figure that was not measured is the worst there is: it cannot push another point off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mpa_edge.bench.results.records import SweepPoint

# turned so that more is better
Goals = tuple[float, float, float, float]


def goals(point: SweepPoint) -> Goals:
    """The four figures of a point, more is better, unknown is minus infinity."""
    less = [-math.inf if value is None else -value for value in (point.ttft_s, point.peak_bytes)]
    more = -math.inf if point.tokens_per_s is None else point.tokens_per_s
    return (point.accuracy, less[0], more, less[1])


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


def marked(points: Sequence[SweepPoint]) -> tuple[SweepPoint, ...]:
    """The points with `on_front` set."""
    return tuple(point.model_copy(update={"on_front": on}) for point, on in zip(points, front(points), strict=True))


def overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two intervals share a point.

    >>> overlap((0.1, 0.3), (0.3, 0.5)), overlap((0.1, 0.2), (0.3, 0.5))
    (True, False)
    """
    return a[0] <= b[1] and b[0] <= a[1]


def recommend(points: Sequence[SweepPoint]) -> tuple[int | None, str]:
    """The setting to use, with the reason; None where none is within the budgets.

    Among those within the budgets: the most accurate one and all whose intervals overlap its own count as equally
    accurate; of these the one with the shortest time to the first token, then the fastest, the smallest, the first.
    """
    allowed = [i for i, point in enumerate(points) if point.within_budgets]
    if not allowed:
        return None, "no setting is within the budgets of the target" if points else "nothing was measured"
    best = max(allowed, key=lambda i: points[i].accuracy)
    equal = [i for i in allowed if overlap(points[i].ci95, points[best].ci95)]
    chosen = min(equal, key=lambda i: tuple(-goal for goal in goals(points[i])[1:]))
    return chosen, why(points, chosen, best, len(equal))


def why(points: Sequence[SweepPoint], chosen: int, best: int, equal: int) -> str:
    """The reason in words."""
    ttft_s, accuracy = points[chosen].ttft_s, f"{points[chosen].accuracy:.1%}"
    figures = accuracy if ttft_s is None else f"{accuracy}, first token after {ttft_s:.2f} s"
    if equal == 1:
        return f"clearly the most accurate within the budgets ({figures})"
    if chosen == best:
        return f"the most accurate within the budgets, and the quickest of {equal} as accurate within noise ({figures})"
    most = f"the best has {points[best].accuracy:.1%}"
    return f"the quickest of {equal} settings within the budgets that are as accurate within noise ({figures}; {most})"
