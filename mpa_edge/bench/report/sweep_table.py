"""What `mpa-edge bench --sweep` prints: every setting, the front, and the one to use."""

from __future__ import annotations

from mpa_edge.bench.report import words
from mpa_edge.bench.report.table import WIDTH, cells, drawn, new_table
from mpa_edge.bench.results.records import Sweep, SweepPoint


def render_sweep(sweep: Sweep, width: int = WIDTH) -> str:
    """A row a setting: `front` where no other is better in one thing and as good in all, `use` for the recommended."""
    names = list(dict.fromkeys(name for point in sweep.points for name in point.settings))
    titles = ("accuracy", "95 % interval", "TTFT", "tokens/s", "peak memory", "within budgets", "")
    table = new_table(*(name.replace("_", " ") for name in names), *titles)
    for index, point in enumerate(sweep.points):
        marks = ["front"] * point.on_front + ["use"] * (index == sweep.recommended)
        settings = [str(point.settings.get(name, "")) for name in names]
        table.add_row(*cells(*settings, *_figures(point), ", ".join(marks)))
    return f"{drawn(table, width)}\n{_last_word(sweep)}"


def _figures(point: SweepPoint) -> tuple[str, ...]:
    speed = "" if point.tokens_per_s is None else f"{point.tokens_per_s:,.0f}"
    return (
        words.percent(point.accuracy),
        words.percent_range(point.ci95),
        "" if point.ttft_s is None else words.quantity(point.ttft_s, "s"),
        speed,
        words.size(point.peak_bytes),
        "yes" if point.within_budgets else "no",
    )


def _last_word(sweep: Sweep) -> str:
    if sweep.recommended is None:
        return f"none to recommend: {sweep.reason}"
    chosen = ", ".join(f"{name} {value}" for name, value in sweep.points[sweep.recommended].settings.items())
    return f"use {chosen}: {sweep.reason}"
