"""What `mpa-edge bench` prints, and `mpa-edge report` of a comparison: plain text without colours, also for a log."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpa_edge.bench.report import soak, words
from mpa_edge.bench.report.compare import Comparison
from mpa_edge.bench.report.read import BenchData
from mpa_edge.bench.report.view import budgets
from mpa_edge.bench.results.records import Sweep
from mpa_edge.bench.results.soak import Soak
from mpa_edge.questions import measure_of

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 100
SIGNS = {"regression": "✗ regression", "improvement": "✓ improvement"}


def render_table(data: BenchData, width: int = WIDTH) -> str:
    """One benchmark, at most `width` columns."""
    report = data.report
    remarks = [*map(words.visible, report.reasons), *filter(None, [words.settling(report)])]
    remarks += map(words.visible, words.truth_sentences(report))
    head = f"{words.SIGNS[report.verdict]} {words.headline(report)}: {words.visible(data.title)}"
    found = report.accuracy
    table = _table("", "base", "aligned", report.scheme)
    models = (found.base, found.aligned, found.artifact)
    table.add_row(measure_of(report.truth), *(words.percent(one.value) for one in models))
    table.add_row("  95 % interval", *(words.percent_range(one.ci95) for one in models))
    lower = found.retained_gain_lower
    least = f", {words.at_least(lower)}" if lower is not None else ""
    table.add_row("gain left", "", "", f"{words.percent(found.retained_gain, 0)}{least}")
    for name, title in words.METRIC_NAMES.items():
        figure, base = report.latency.get(name), report.base_latency.get(name)
        if figure and figure.p50 is not None:
            own = words.quantity(figure.p50, figure.unit)
            table.add_row(title, words.quantity(base.p50, base.unit) if base else "", "", own)
    if report.timings != "valid":
        table.add_row("timings", *_cells("", "", report.timings))
    if report.accelerator:
        table.add_row("computed by", *_cells("", "", words.computed_by(report.accelerator)))
    table.add_row("peak memory", "", "", words.size(report.memory.peak_bytes))
    table.add_row("size", "", "", words.size(report.size_bytes))
    judged = [
        textwrap.fill(f"budget: {name} {limit}, {words.visible(why)}: {word}", width, subsequent_indent="  ")
        for name, limit, _, _, word, why in budgets(report)
    ]
    return "\n".join([head, *(f"  - {remark}" for remark in remarks), _drawn(table, width), *judged])


def render_soak(found: Soak, width: int = WIDTH) -> str:
    """A soak, at most `width` columns."""
    title = f"{words.visible(found.run)}: {found.scheme} on {found.target}, {soak.headline(found)}"
    lines = [f"  {what}: {value}" for what, value in soak.shown_rows(found)]
    return "\n".join(textwrap.fill(line, width, subsequent_indent="    ") for line in (title, *lines))


def render_comparison(comparison: Comparison, width: int = WIDTH) -> str:
    """What changed between two benchmarks."""
    table = _table("", "outcome", "before", "after", "change")
    for change in comparison.changes:
        outcome = SIGNS.get(change.outcome, change.outcome)
        table.add_row(*_cells(change.title, outcome, change.before, change.after, change.change))
    lines = [words.visible(f"{comparison.after.title} against {comparison.before.title}"), _drawn(table, width)]
    if comparison.differences:
        lines.append(f"Not the same in both: {words.visible('; '.join(comparison.differences))}")
    return "\n".join(lines)


def render_sweep(sweep: Sweep, width: int = WIDTH) -> str:
    """A row for each setting: `front` where no other beats it, `use` for the recommended one, which is named below."""
    names = list(dict.fromkeys(name for point in sweep.points for name in point.settings))
    titles = (measure_of(sweep.truth), "95 % interval", "TTFT", "tokens/s", "peak memory", "within budgets", "")
    table = _table(*(name.replace("_", " ") for name in names), *titles)
    for index, point in enumerate(sweep.points):
        figures = (
            words.percent(point.accuracy),
            words.percent_range(point.ci95),
            "" if point.ttft_s is None else words.quantity(point.ttft_s, "s"),
            "" if point.tokens_per_s is None else f"{point.tokens_per_s:,.0f}",
            words.size(point.peak_bytes),
            "yes" if point.within_budgets else "no",
        )
        marks = ["front"] * point.on_front + ["use"] * (index == sweep.recommended)
        settings = (str(point.settings.get(name, "")) for name in names)
        table.add_row(*_cells(*settings, *figures, ", ".join(marks)))
    if sweep.recommended is None:
        return f"{_drawn(table, width)}\nnone to recommend: {sweep.reason}"
    chosen = ", ".join(f"{name} {value}" for name, value in sweep.points[sweep.recommended].settings.items())
    return f"{_drawn(table, width)}\nuse {chosen}: {sweep.reason}"


def verdict_line(data: BenchData) -> str:
    """One benchmark on one line."""
    report = data.report
    sign = words.SIGNS[report.verdict]
    value = words.percent(report.accuracy.artifact.value)
    what = "" if report.truth == "labels" else f" {measure_of(report.truth)}"
    return f"{sign} {report.verdict}: {words.visible(data.title)}, {value}{what}"


def _table(*columns: str) -> Table:
    """The first column and `outcome` are left-aligned, the rest right-aligned."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(_cells(*columns)):
        table.add_column(column, justify="right" if index and column != "outcome" else "left", overflow="fold")
    return table


def _cells(*texts: str) -> Sequence[str]:
    """Texts without what rich would take for markup."""
    from rich.markup import escape

    return [escape(words.visible(text)) for text in texts]


def _drawn(table: Table, width: int) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines() if line.strip())
