"""One HTML file that needs nothing else: no script, no font, no image from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from mpa_edge import __version__
from mpa_edge.bench.report import drawing, soak, view, words
from mpa_edge.bench.report.compare import Comparison
from mpa_edge.bench.report.read import BenchData, log_line
from mpa_edge.bench.results.samples import pick, story

TEMPLATES = Path(__file__).parent / "templates"
# a number stays on one line with its unit
TORN = re.compile(r"(?<=\d) (?=(?:%|ms|s|B|kB|MB|GB|tok/s|ms/token|J|W)(?!\w))|(?<=[=<]) (?=\d)|(?<=\bp) (?=[=<])")
# the page has the colour and sign of its worst benchmark
WORST_FIRST = ("lost", "invalid", "inconclusive", "holds")
MOST_READINGS = 120


def render_html(benches: Sequence[BenchData], comparisons: Sequence[Comparison] = (), alone: Sequence[str] = ()) -> str:
    """The page. The same benchmarks give the same bytes; every text of a model or a device is escaped.

    `alone`: sentences about benchmarks that could not be compared.
    """
    several = len({data.report.run for data in benches}) > 1
    names = [data.title if several else f"{data.report.scheme} on {data.report.target}" for data in benches]
    runs = words.joined(list(dict.fromkeys(data.report.run for data in benches)))
    verdicts = [data.report.verdict for data in benches]
    only = benches[0].report
    reasons: tuple[str, ...] = ()
    word = min(verdicts, key=WORST_FIRST.index)
    if comparisons:
        worse = [change.title for one in comparisons for change in one.regressions]
        word, headline, lead = "holds", "No regression beyond noise", "No change for the worse is larger than noise."
        if worse:
            headline, lead = f"{words.plural(len(worse), 'regression')} beyond noise", f"Worse: {words.joined(worse)}."
            word = "lost"
        eyebrow = f"Two benchmarks compared · {runs}"
    elif len(benches) == 1:
        headline, lead, reasons = words.headline(only), words.summary(only), only.reasons
        eyebrow = f"{only.run} · {only.scheme} on {only.target}"
    else:
        headline, lead = words.tally(verdicts), "Each was asked the same questions as base and aligned."
        eyebrow = f"{words.plural(len(benches), 'benchmark')} of {runs}"
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            version=__version__,
            title=f"{headline} – {runs} – mpa-edge",
            eyebrow=eyebrow,
            word=word,
            headline=headline,
            lead=lead,
            reasons=reasons,
            benches=benches,
            names=names,
            sweeps=list({data.folder.parent: data.sweep for data in benches if data.sweep}.values()),
            comparisons=comparisons,
            alone=alone,
            log=log_line(benches),
        )
    )


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
    environment.globals |= {
        "words": words,
        "drawing": drawing,
        "soaks": soak,
        "view": view,
        "pick": pick,
        "story": story,
    }
    environment.globals["MOST_READINGS"] = MOST_READINGS
    environment.filters["said"] = lambda text: escape(words.visible(text))
    return environment


def _shown(value: Any) -> Any:
    """What a template shows for a value, before it is escaped; markup is passed through, as only this module makes it.

    Texts of people and models go through the filter `said` instead, which leaves their spaces alone.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    head, _, body = value.partition(";base64,")
    if head in ("data:image/jpeg", "data:image/png") and body.isascii() and not set(body) & set("\"'<>& \n"):
        return Markup(value)  # noqa: S704  (one of our data URIs: letters, digits and the signs of base64)
    return TORN.sub("\u00a0", words.visible(value))
