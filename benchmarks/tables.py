"""Numbers and tables in Markdown, for the reports."""

from __future__ import annotations

from collections.abc import Sequence


def percent(value: float) -> str:
    """0.4567 -> 45.7 %."""
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    """0.131 -> +13.1."""
    return f"{100 * value:+.1f}"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    lines = [heading, ["---", *("---:" for _ in heading[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)
