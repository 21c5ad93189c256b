"""The report as Markdown: for a pull request, an issue, a README."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mpa_edge.bench.report import drawing, soak, view, words
from mpa_edge.bench.report.compare import Comparison
from mpa_edge.bench.report.read import BenchData, log_line
from mpa_edge.bench.results.records import Sweep
from mpa_edge.bench.results.samples import pick, story
from mpa_edge.questions import measure_of

SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~$@:&-])")
# these signs are harmless inside a sentence; a leading one stays escaped, as it would start a list
HARMLESS = re.compile(r"\\(?=[-+():](?:[\w ,.;%)]|$))")


def escaped(text: str) -> str:
    r"""Text on one line that a Markdown parser shows as it is.

    >>> escaped("<b>|a*b_c\nd")
    '\\<b\\>\\|a\\*b\\_c d'
    """
    return HARMLESS.sub("", SPECIAL.sub(r"\\\1", words.visible(text)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table, none where it has no rows; cells are escaped here."""
    made = ["| " + " | ".join(escaped(cell) for cell in line) + " |" for line in [head, *rows]]
    return [made[0], "|" + "---|" * len(head), *made[1:], ""] if len(made) > 1 else []


def render_markdown(
    benches: Sequence[BenchData], comparisons: Sequence[Comparison] = (), alone: Sequence[str] = ()
) -> str:
    """The report. The same benchmarks give the same text. `alone`: as for `render_html`."""
    lines = [line for comparison in comparisons for line in _comparison(comparison)]
    lines += [f"{escaped(line)}\n" for line in alone]
    if len(benches) > 1:
        head = ("Benchmark", "Verdict", *(name for name, _ in view.overview(benches[0].report)))
        rows = [
            (data.title, data.report.verdict, *(value for _, value in view.overview(data.report))) for data in benches
        ]
        lines += ["# All benchmarks", "", *table(head, rows)]
    lines += [line for data in benches for line in _bench(data)]
    sweeps = {data.folder.parent: data.sweep for data in benches if data.sweep}
    lines += [line for sweep in sweeps.values() for line in _sweep(sweep)]
    log = log_line(benches)
    return "\n".join([*lines, *([escaped(log)] if log else [])]).rstrip() + "\n"


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


def _bench(data: BenchData) -> list[str]:
    report = data.report
    accuracy = [
        (model, where, words.percent(one.value), words.percent_range(one.ci95))
        for model, where, one in view.models(report)
    ]
    samples = [
        (story(row), row.question, " / ".join(row.answers), row.base, row.aligned, row.artifact)
        for row in pick(data.answers)
    ]
    memory = (
        f"Peak memory {words.size(report.memory.peak_bytes)} ({report.memory.method}); "
        f"size {words.size(report.size_bytes)}; energy: {words.energy_sentence(report)}"
    )
    return [
        f"# {escaped(data.title)}: {words.headline(report)}",
        "",
        escaped(words.summary(report)),
        "",
        *(f"- {escaped(reason)}" for reason in report.reasons),
        "",
        *table(("Model", "Where", measure_of(report.truth).capitalize(), "95 % interval"), accuracy),
        *(escaped(line) for line in words.truth_sentences(report)),
        escaped(f"{words.flips_sentence(report)} {words.margin_sentence(report)}"),
        "",
        *table(("What", "Median", "95 % interval", "p90", "p99", "Samples", "Base"), view.latency(report)),
        *table(
            ("Budget", "Limit", "Measured", "Outcome", "Why this limit"),
            ((*row[:3], *row[4:]) for row in view.budgets(report)),
        ),
        escaped(memory),
        "",
        *(table(("Soak", soak.headline(data.soak)), soak.shown_rows(data.soak)) if data.soak else ()),
        *table(("What happened", "Question", "Accepted", "Base", "Aligned", "Artifact"), samples),
        *table(("Environment", ""), view.environment(report)),
        *(f"- {escaped(line)}" for line in view.method(report)),
        *(f"- Not timed: {escaped(line)}" for line in report.not_timed),
        *(f"- Missing: {escaped(line)}" for line in data.notes),
        "",
    ]


def _sweep(sweep: Sweep) -> list[str]:
    rows = []
    for place in drawing.sweep_places(sweep):
        point = place.point
        rows.append(
            (
                words.settings_text(point.settings),
                words.percent(point.accuracy),
                words.percent_range(point.ci95),
                words.quantity(point.ttft_s, "s"),
                words.quantity(point.tokens_per_s, "tokens/s"),
                words.size(point.peak_bytes),
                "within" if point.within_budgets else "missed",
                "recommended" if place.chosen else "front" if point.on_front else "",
            )
        )
    head = ("Setting", words.heading(sweep.truth), "95 % interval", "TTFT", "Decoding", "Memory", "Budgets", "")
    title, sentence = f"## Settings for {escaped(sweep.target)}", escaped(words.sweep_sentence(sweep))
    return [title, "", sentence, "", *table(head, rows)]
