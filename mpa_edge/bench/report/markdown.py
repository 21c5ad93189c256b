"""The report as Markdown: for a pull request, an issue, a README."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mpa_edge.bench.report import drawing, words
from mpa_edge.bench.report.compare import Comparison
from mpa_edge.bench.report.read import BenchData
from mpa_edge.bench.report.view import budgets, environment, method, short, sweep_view
from mpa_edge.bench.results.samples import pick, story

SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~$@:&-])")
# a digit with a dot would start a list, and a sign inside a word starts nothing: only what can do harm is escaped
HARMLESS = re.compile(r"\\(?=[-+():](?:[\w ,.;%)]|$))")


def escaped(text: str) -> str:
    r"""Text that Markdown and HTML inside it leave alone, on one line.

    >>> escaped("<b>|a*b_c\nd")
    '\\<b\\>\\|a\\*b\\_c d'
    """
    return HARMLESS.sub("", SPECIAL.sub(r"\\\1", words.visible(text)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; cells are escaped here."""
    lines = [head, *rows]
    made = ["| " + " | ".join(escaped(cell) for cell in line) + " |" for line in lines]
    return [made[0], "|" + "---|" * len(head), *made[1:], ""]


def render_markdown(
    benches: Sequence[BenchData], comparisons: Sequence[Comparison] = (), alone: Sequence[str] = ()
) -> str:
    """The report. The same benchmarks give the same text."""
    lines: list[str] = []
    for comparison in comparisons:
        lines += _comparison(comparison)
    lines += [f"{escaped(line)}\n" for line in alone]
    if len(benches) > 1:
        lines += _overview(benches)
    for data in benches:
        lines += _bench(data)
    found = {data.folder.parent: data.sweep for data in benches if data.sweep}
    for number, sweep in enumerate(found.values(), start=1):
        view = sweep_view(sweep, number)
        rows = [
            (
                p.settings,
                p.accuracy,
                p.between,
                p.ttft,
                p.speed,
                p.memory,
                "within" if p.within else "missed",
                "recommended" if p.chosen else "front" if p.front else "",
            )
            for p in view.points
        ]
        head = ("Setting", "Accuracy", "95 % interval", "TTFT", "Decoding", "Memory", "Budgets", "")
        lines += [f"## Settings for {escaped(sweep.target)}", "", escaped(view.sentence), "", *table(head, rows)]
    return "\n".join(lines).rstrip() + "\n"


def _comparison(one: Comparison) -> list[str]:
    count = len(one.regressions)
    verdict = f"{words.plural(count, 'regression')} beyond noise" if count else "no regression beyond noise"
    rows = [(c.title, c.outcome, c.before, c.after, c.change or words.NONE, c.why) for c in one.changes]
    differences = [f"Not the same in both: {escaped('; '.join(one.differences))}.", ""] if one.differences else []
    return [
        f"# {escaped(one.after.title)} against {escaped(one.before.title)}: {verdict}",
        "",
        *table(("What", "Outcome", "Before", "After", "Change", "Why"), rows),
        *differences,
    ]


def _overview(benches: Sequence[BenchData]) -> list[str]:
    names = [name for name, _ in short(benches[0].report)]
    rows = [(data.title, data.report.verdict, *(value for _, value in short(data.report))) for data in benches]
    return ["# All benchmarks", "", *table(("Benchmark", "Verdict", *names), rows)]


def _bench(data: BenchData) -> list[str]:
    report = data.report
    axis = drawing.accuracy_scale(report)
    accuracy = [(row.model, row.where, row.value, row.between) for row in drawing.accuracy_rows(report, axis)]
    latency = [(name, *values) for _, name, values in drawing.latency_rows(report)]
    limits = [(name, limit, measured, word) for name, limit, measured, _, word in budgets(report)]
    samples = [
        (story(row), row.question, " / ".join(row.answers), row.base, row.aligned, row.artifact)
        for row in pick(data.answers)
    ]
    return [
        f"# {escaped(data.title)}: {words.headline(report)}",
        "",
        escaped(words.summary(report)),
        "",
        *(f"- {escaped(reason)}" for reason in report.reasons),
        "",
        *table(("Model", "Where", "Accuracy", "95 % interval"), accuracy),
        escaped(f"{words.flips_sentence(report)} {words.margin_sentence(report)}"),
        "",
        *_when(latency, table(("What", "Median", "95 % interval", "p90", "p99", "Samples", "Base"), latency)),
        *_when(limits, table(("Budget", "Limit", "Measured", "Outcome"), limits)),
        escaped(
            f"Peak memory {words.size(report.memory.peak_bytes)} ({report.memory.method}); "
            f"size {words.size(report.size_bytes)}; energy: {words.energy_sentence(report)}"
        ),
        "",
        *_when(samples, table(("What happened", "Question", "Accepted", "Base", "Aligned", "Artifact"), samples)),
        *table(("Environment", ""), environment(report)),
        *(f"- {escaped(line)}" for line in method(data)),
        *(f"- Not timed: {escaped(line)}" for line in report.not_timed),
        *(f"- Missing: {escaped(line)}" for line in data.notes),
        "",
    ]


def _when(condition: object, lines: list[str]) -> list[str]:
    return lines if condition else []
