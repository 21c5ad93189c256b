"""What `mpa-edge bench` prints after each benchmark, and `mpa-edge report` of a comparison: plain text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpa_edge.bench.report import words
from mpa_edge.bench.report.compare import Comparison
from mpa_edge.bench.report.read import BenchData
from mpa_edge.bench.report.view import budgets, median
from mpa_edge.bench.results.records import BenchReport

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 100
SIGNS = {"regression": "✗ regression", "improvement": "✓ improvement"}


def render_table(data: BenchData, width: int = WIDTH) -> str:
    """One benchmark for the terminal, at most `width` columns; no colours, so it reads the same in a log."""
    report = data.report
    lines = [
        f"{words.SIGNS[report.verdict]} {words.headline(report)}: {words.visible(data.title)}",
        *(f"  - {words.visible(reason)}" for reason in report.reasons),
    ]
    settling = words.settling(report)
    return "\n".join([*lines, *([f"  - {settling}"] if settling else []), drawn(_models(report), width)])


def render_comparison(comparison: Comparison, width: int = WIDTH) -> str:
    """What changed, for the terminal."""
    table = new_table("", "outcome", "before", "after", "change")
    for change in comparison.changes:
        outcome = SIGNS.get(change.outcome, change.outcome)
        table.add_row(*cells(change.title, outcome, change.before, change.after, change.change))
    head = f"{comparison.after.title} against {comparison.before.title}"
    lines = [words.visible(head), drawn(table, width)]
    if comparison.differences:
        lines.append(f"Not the same in both: {words.visible('; '.join(comparison.differences))}")
    return "\n".join(lines)


def verdict_line(data: BenchData) -> str:
    """One benchmark on one line."""
    report = data.report
    sign = words.SIGNS[report.verdict]
    return f"{sign} {report.verdict}: {words.visible(data.title)}, {words.percent(report.accuracy.artifact.value)}"


def _models(report: BenchReport) -> Table:
    """Rows of figures; base and aligned where they have them."""
    found = report.accuracy
    table = new_table("", "base", "aligned", report.scheme)
    models = (found.base, found.aligned, found.artifact)
    table.add_row("accuracy", *(words.percent(one.value) for one in models))
    table.add_row("  95 % interval", *(words.percent_range(one.ci95) for one in models))
    lower = found.retained_gain_lower
    least = f", {words.at_least(lower)}" if lower is not None else ""
    table.add_row("gain left", "", "", f"{words.percent(found.retained_gain, 0)}{least}")
    for name, title in words.METRIC_NAMES.items():
        figure, base = report.latency.get(name), report.base_latency.get(name)
        if figure and figure.p50 is not None:
            table.add_row(title, words.quantity(base.p50, base.unit) if base else "", "", median(report, name))
    if report.timings != "valid":
        table.add_row("timings", *cells("", "", report.timings))
    table.add_row("peak memory", "", "", words.size(report.memory.peak_bytes))
    table.add_row("size", "", "", words.size(report.size_bytes))
    for name, limit, _, _, word in budgets(report):
        table.add_row(f"budget: {name}", "", limit, word)
    return table


def new_table(*columns: str) -> Table:
    """A plain table; the first column and `outcome` to the left, the rest to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(cells(*columns)):
        table.add_column(column, justify="right" if index and column != "outcome" else "left", overflow="fold")
    return table


def cells(*texts: str) -> Sequence[str]:
    """Texts without what rich would take for markup."""
    from rich.markup import escape

    return [escape(words.visible(text)) for text in texts]


def drawn(table: Table, width: int) -> str:
    """A table as text without colours."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines() if line.strip())
