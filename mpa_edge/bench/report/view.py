"""The tables and sentences of a report as rows of text, for HTML and the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mpa_edge.bench.report import words
from mpa_edge.bench.report.read import BenchData
from mpa_edge.bench.results.records import METRICS, AnswerRow, BenchReport
from mpa_edge.metrics.gain import ModelAccuracy
from mpa_edge.questions import measure_of

MODELS = ("base", "aligned", "artifact")
DEEPEST = 4
NO_VERDICT = "gives no verdict"
BUDGET_NAMES = {"memory_bytes": "peak memory", "ttft_s": "time to first token", "tokens_per_s": "decoding speed"}
BUDGET_CLASSES = {True: "holds", False: "lost", None: "inconclusive"}


def tiles(report: BenchReport) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the six figures that a reader looks for first."""
    found, times = report.accuracy, []
    lower = found.retained_gain_lower
    for title, name in (("Time to first token", "ttft_s"), ("Decoding", "tokens_per_s")):
        figure = report.latency.get(name)
        median = words.quantity(figure.p50, figure.unit) if figure else words.NONE
        interval = words.interval(figure) if figure and figure.ci95 else ""
        times.append((title, median, interval if report.timings == "valid" else NO_VERDICT))
    return [
        (words.MEASURES[report.truth], words.percent(found.artifact.value), words.percent_range(found.artifact.ci95)),
        (
            "Gain left",
            words.percent(found.retained_gain, 0),
            "no gain beyond noise" if lower is None else words.at_least(lower),
        ),
        *times,
        ("Peak memory", words.size(report.memory.peak_bytes), NO_VERDICT if report.emulated else ""),
        ("Size on disk", words.size(report.size_bytes), ""),
    ]


def overview(report: BenchReport) -> list[tuple[str, str]]:
    """(column, value): one row of the table of all benchmarks."""
    columns = (words.heading(report.truth), "Gain left", "TTFT", "Decoding", "Memory", "Size")
    shown = ("no verdict" if remark == NO_VERDICT else value for _, value, remark in tiles(report))
    return list(zip(columns, shown, strict=True))


def models(report: BenchReport) -> list[tuple[str, str, ModelAccuracy]]:
    """(model, where and in which precision it answered, its accuracy)."""
    where = ("before, fp32 on the host", "after, fp32 on the host", f"{report.scheme} on the device")
    return [(name, place, getattr(report.accuracy, name)) for name, place in zip(MODELS, where, strict=True)]


def accuracy_note(data: BenchData) -> str:
    """Number of questions and images, and what the intervals are."""
    images = len({row.image for row in data.answers})
    about = f" about {words.plural(images, 'image')}" if images else ""
    return (
        f"The same {words.plural(data.report.accuracy.artifact.n, 'question')}{about} for all three, greedy decoding. "
        "Lines are 95 % intervals; questions about one image, or near-duplicates of it, are one cluster."
    )


def latency(report: BenchReport) -> list[list[str]]:
    """[name, median, interval, p90, p99, samples, median of base] of what was measured."""
    rows = []
    for name, title in words.METRIC_NAMES.items():
        figure, base = report.latency.get(name), report.base_latency.get(name)
        if figure is None or figure.p50 is None:
            continue
        p50, p90, p99 = (words.quantity(value, figure.unit) for value in (figure.p50, figure.p90, figure.p99))
        other = words.quantity(base.p50, base.unit) if base else words.NONE
        rows.append([title, p50, words.interval(figure), p90, p99, f"{figure.n:,}", other])
    return rows


def budgets(report: BenchReport) -> list[tuple[str, str, str, str, str, str]]:
    """(name, limit, measured, class, outcome, the arithmetic of the limit)."""
    rows = []
    for line in report.budgets:
        limit, measured = (
            words.size(value) if line.name == "memory_bytes" else words.quantity(value, METRICS[line.name])
            for value in (line.limit, line.measured)
        )
        if line.met is None or line.by is None:
            outcome = "not judged"
        elif line.by > 1:
            outcome = f"met, {words.rounded(1 + line.by)} times the limit"
        else:
            room = words.percent(abs(line.by), 0)
            outcome = f"met, {room} to spare" if line.met else f"missed by {room}"
        bound = "at least" if line.name == "tokens_per_s" else "at most"
        rows.append(
            (BUDGET_NAMES[line.name], f"{bound} {limit}", measured, BUDGET_CLASSES[line.met], outcome, line.why)
        )
    return rows


def marks(row: AnswerRow) -> list[tuple[str, str, str, str]]:
    """(model, its answer, class, right or wrong in words) of one question."""
    found = []
    for model, text, score in zip(MODELS, (row.base, row.aligned, row.artifact), row.scores, strict=True):
        kind = "right" if score >= 1 else "wrong" if score <= 0 else "partly"
        found.append((model, text, kind, f"partly right, {words.rounded(score)}" if kind == "partly" else kind))
    return found


def environment(report: BenchReport) -> list[tuple[str, str]]:
    """(name, value) of what was used."""
    used = report.environment
    link = "the host itself" if used.transport == "local" else f"reached by {used.transport}"
    return [
        ("Device", f"{report.target}, {link}" + (", emulated" if report.emulated else "")),
        ("Processor", f"{used.cpu} ({used.machine}), {words.plural(used.cores, 'usable core')}"),
        ("Instruction sets", ", ".join(used.cpu_features) or "none that matters was found"),
        ("System", used.os),
        ("Runtime", f"{used.runtime}, {used.backend}"),
        *([("Computed by", words.computed_by(report.accelerator))] if report.accelerator else []),
        ("Threads", "unknown" if used.threads is None else str(used.threads)),
        ("Measured", f"{report.created} (UTC, clock of the host)"),
        ("Bundle", report.bundle_sha256),
    ]


def readings(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """(dotted name, value) of nested readings; what a device does not show has its reason instead.

    >>> list(readings({"governor": "performance", "gpu": {"value": None, "reason": "denied"}, "temps_c": [41, 42]}))
    [('governor', 'performance'), ('gpu', 'not readable: denied'), ('temps c', '41, 42')]
    """
    if isinstance(value, dict) and set(value) == {"value", "reason"} and value["value"] is None:
        yield name, f"not readable: {value['reason']}"
    elif isinstance(value, dict) and depth < DEEPEST:
        for key, inner in value.items():
            yield from readings(inner, f"{name}.{key}" if name else str(key).replace("_", " "), depth + 1)
    elif isinstance(value, list) and all(isinstance(one, dict) for one in value) and value and depth < DEEPEST:
        for index, inner in enumerate(value):
            yield from readings(inner, f"{name}.{index}", depth + 1)
    elif isinstance(value, list):
        yield name, ", ".join(_plain(one) for one in value) or words.NONE
    else:
        yield name, _plain(value)


def _plain(value: Any) -> str:
    """A single reading as text.

    >>> _plain(22705204.0), _plain(None), _plain(True)
    ('22705204', 'unknown', 'yes')
    """
    if value is None or isinstance(value, bool):
        return "unknown" if value is None else "yes" if value else "no"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def method(report: BenchReport) -> list[str]:
    """How the figures were measured."""
    lines = [f"Every question was asked once for the {measure_of(report.truth)}, with greedy decoding."]
    ttft = report.latency.get("ttft_s")
    if ttft and ttft.n:
        turns = ", alternating with base in the same scheme" if report.base_latency else ""
        lines.append(
            f"Timings: {words.plural(ttft.n, 'warm answer')} of the artifact{turns}; "
            "intervals are 95 % bootstrap intervals of the median."
        )
    return [
        *lines,
        f"Timings are {report.timings}.",
        f"Peak memory: {report.memory.method}.",
        f"Energy: {report.energy_reason or words.NONE}.",
        "The verdict: McNemar's exact test against base, and the lower bound of the share of the gain that is left.",
        *(f"Tried for the export before this scheme, and refused: {' '.join(one.split())}." for one in report.refused),
    ]
