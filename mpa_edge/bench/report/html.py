"""One HTML file that needs nothing else: no script, no font, no picture from outside."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from mpa_edge import __version__
from mpa_edge.bench.report import words
from mpa_edge.bench.report.compare import Comparison
from mpa_edge.bench.report.drawing import tick_text
from mpa_edge.bench.report.read import BenchData
from mpa_edge.bench.report.view import BenchView, SweepView, bench_view, sweep_view

TEMPLATES = Path(__file__).parent / "templates"
# a number stays on one line with its unit
TORN = re.compile(r"(?<=\d) (?=(?:%|ms|s|B|kB|MB|GB|tok/s|ms/token|J|W)(?!\w))|(?<=[=<]) (?=\d)|(?<=\bp) (?=[=<])")
# worst first: the page wears the sign of its worst benchmark
WORST_FIRST = ("lost", "invalid", "inconclusive", "holds")


@dataclass(frozen=True)
class Page:
    """The whole page."""

    title: str
    """Of the window."""
    eyebrow: str
    """Line above the headline."""
    word: str
    """Verdict that gives the sign."""
    headline: str
    """In words."""
    lead: str
    """Sentences below it."""
    reasons: tuple[str, ...]
    """Of a single benchmark."""
    views: list[BenchView]
    """One for each benchmark."""
    sweeps: list[SweepView]
    """One for each target."""
    comparisons: Sequence[Comparison]
    """Where two runs are held against each other."""
    alone: Sequence[str]
    """Benchmarks without a counterpart."""


def render_html(benches: Sequence[BenchData], comparisons: Sequence[Comparison] = (), alone: Sequence[str] = ()) -> str:
    """The page. The same benchmarks give the same bytes; every text of a model or a device is escaped."""
    page = page_of(benches, comparisons, alone)
    return _environment().get_template("report.html.j2").render(page=page, version=__version__)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
        keep_trailing_newline=True,
    )
    environment.globals["tick_text"] = tick_text
    environment.filters["said"] = _said
    return environment


def _shown(value: Any) -> Any:
    """Every text passes here before it is escaped; what is markup already is ours."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    if value.startswith("data:image/") and _is_picture(value):
        return Markup(value)  # noqa: S704  (letters, digits and the signs of base64)
    return TORN.sub("\u00a0", words.visible(value))


def _said(text: str) -> Markup:
    """What a person or a model wrote: as it is, but for what cannot be seen."""
    return escape(words.visible(text))


def _is_picture(uri: str) -> bool:
    """Whether a text is one of our data URIs and nothing more: letters, digits and the signs of base64."""
    head, _, body = uri.partition(";base64,")
    return head in ("data:image/jpeg", "data:image/png") and body.isascii() and not set(body) & set("\"'<>& \n")


def page_of(benches: Sequence[BenchData], comparisons: Sequence[Comparison], alone: Sequence[str]) -> Page:
    """The whole page as a record."""
    runs = list(dict.fromkeys(data.report.run for data in benches))
    views = [bench_view(data, i, with_run=len(runs) > 1) for i, data in enumerate(benches, start=1)]
    found = {data.folder.parent: data.sweep for data in benches if data.sweep}
    sweeps = [sweep_view(sweep, i) for i, sweep in enumerate(found.values(), start=1)]
    verdicts = [data.report.verdict for data in benches]
    worst = min(verdicts, key=WORST_FIRST.index)
    first = benches[0]
    if comparisons:
        count = sum(len(one.regressions) for one in comparisons)
        word, headline, lead = _compared(count, comparisons)
        eyebrow = f"Two benchmarks compared · {words.joined(runs)}"
    elif len(benches) == 1:
        word, headline, lead = worst, words.headline(first.report), words.summary(first.report)
        eyebrow = f"{first.report.run} · {first.report.scheme} on {first.report.target}"
    else:
        word, headline, lead = worst, tally(verdicts), "Each was asked the same questions as base and aligned."
        eyebrow = f"{words.plural(len(benches), 'benchmark')} of {words.joined(runs)}"
    reasons = first.report.reasons if len(benches) == 1 and not comparisons else ()
    title = f"{headline} – {words.joined(runs)} – mpa-edge"
    return Page(title, eyebrow, word, headline, lead, reasons, views, sweeps, comparisons, alone)


def _compared(count: int, comparisons: Sequence[Comparison]) -> tuple[str, str, str]:
    """(word, headline, lead) of a comparison."""
    names = [change.title for one in comparisons for change in one.regressions]
    if count:
        return "lost", f"{words.plural(count, 'regression')} beyond noise", f"Worse: {words.joined(names)}."
    return "holds", "No regression beyond noise", "Nothing got worse by more than repeated measurements differ."


def tally(verdicts: Sequence[str]) -> str:
    """How many of each verdict, in words.

    >>> tally(["holds", "lost", "holds"])
    '1 lost, 2 hold'
    """
    many = {"holds": "hold", "inconclusive": "not settled", "invalid": "without valid timings"}
    one = many | {"holds": "holds"}
    count = Counter(verdicts)
    parts = [f"{count[w]} {(one if count[w] == 1 else many).get(w, w)}" for w in WORST_FIRST if count[w]]
    return ", ".join(parts)
