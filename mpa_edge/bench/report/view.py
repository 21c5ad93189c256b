"""What the HTML shows of one benchmark, in words and numbers; the templates only place it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mpa_edge.bench.report import drawing, words
from mpa_edge.bench.report.read import BenchData
from mpa_edge.bench.results.records import METRICS, AnswerRow, BenchReport, Sweep
from mpa_edge.bench.results.samples import pick, story

MOST_READINGS = 120
DEEPEST = 4
BUDGET_CLASSES = {True: "holds", False: "lost", None: "inconclusive"}


@dataclass(frozen=True)
class SampleView:
    """One question with its answers."""

    row: AnswerRow
    """As it was read."""
    story: str
    """What happened."""
    accepted: str
    """Right answers, on one line."""
    picture: str | None
    """Data URI."""
    marks: list[tuple[str, str, str, str]]
    """(model, answer, class, word)."""


@dataclass(frozen=True)
class BenchView:
    """One benchmark, ready to be placed."""

    anchor: str
    """Id of its section."""
    name: str
    """Scheme and target, with the run where several are shown."""
    report: BenchReport
    """As it was read."""
    headline: str
    """Verdict in words."""
    summary: str
    """Why, in sentences."""
    short: list[tuple[str, str]]
    """(column, value) of the overview."""
    tiles: list[tuple[str, str, str]]
    """(name, value, remark) of the figures that matter most."""
    accuracy_axis: drawing.Scale
    """Of the drawing."""
    accuracy: list[drawing.Interval]
    """Three models."""
    accuracy_note: str
    """What was asked."""
    flips: str
    """Sentence."""
    margin: str
    """Sentence."""
    settling: str
    """Sentence; may be empty."""
    stacks: list[drawing.Stack]
    """Latency by phase."""
    phases: list[tuple[int, str, list[str]]]
    """Its legend."""
    latency: list[tuple[str, str, list[str]]]
    """All figures."""
    dots: drawing.Dots | None
    """Every time to the first token."""
    budgets: list[tuple[str, str, str, str, str]]
    """(name, limit, measured, class, word)."""
    memory: str
    """In words."""
    size: str
    """In words."""
    energy: str
    """Sentence."""
    samples: list[SampleView]
    """At most twelve."""
    samples_note: str
    """How they were chosen."""
    environment: list[tuple[str, str]]
    """(name, value)."""
    readings: list[tuple[str, str]]
    """(name, value) of everything else the device said."""
    method: list[str]
    """How it was measured, line by line."""
    notes: tuple[str, ...]
    """What could not be read."""


@dataclass(frozen=True)
class SweepView:
    """A sweep, ready to be placed."""

    anchor: str
    """Id of its heading."""
    target: str
    """Name of the target."""
    sentence: str
    """The recommendation."""
    points: list[drawing.Point]
    """Settings."""
    x: drawing.Scale
    """Seconds."""
    y: drawing.Scale
    """Accuracy."""
    steps: list[tuple[float, float, float, float]]
    """Lines of the front."""
    drawn: bool
    """Whether there is anything to draw."""


def bench_view(data: BenchData, number: int, with_run: bool) -> BenchView:
    """Everything that is shown of one benchmark."""
    report = data.report
    axis, found = drawing.accuracy_scale(report), drawing.stacks(report)
    return BenchView(
        anchor=f"bench-{number}",
        name=data.title if with_run else f"{report.scheme} on {report.target}",
        report=report,
        headline=words.headline(report),
        summary=words.summary(report),
        short=short(report),
        tiles=tiles(report),
        accuracy_axis=axis,
        accuracy=drawing.accuracy_rows(report, axis),
        accuracy_note=accuracy_note(data),
        flips=words.flips_sentence(report),
        margin=words.margin_sentence(report),
        settling=words.settling(report),
        stacks=found,
        phases=drawing.phase_table(found),
        latency=drawing.latency_rows(report),
        dots=drawing.dots(data.timings, "ttft_s"),
        budgets=budgets(report),
        memory=words.size(report.memory.peak_bytes),
        size=words.size(report.size_bytes),
        energy=words.energy_sentence(report),
        samples=[sample_view(row, data) for row in pick(data.answers)],
        samples_note=samples_note(data),
        environment=environment(report),
        readings=list(readings(report.environment.readings))[:MOST_READINGS],
        method=method(data),
        notes=data.notes,
    )


def sweep_view(sweep: Sweep, number: int) -> SweepView:
    """Everything that is shown of a sweep."""
    x, y = drawing.sweep_axes(sweep)
    points = drawing.sweep_points(sweep)
    chosen = next((point.settings for point in points if point.chosen), None)
    sentence = f"Use {chosen}: {sweep.reason}." if chosen else f"None is recommended: {sweep.reason}."
    drawn = any(point.x is not None for point in points)
    steps = drawing.front_line(points)
    return SweepView(f"sweep-{number}", sweep.target, sentence, points, x, y, steps, drawn)


def median(report: BenchReport, metric: str) -> str:
    """Median of the artifact, in words."""
    figure = report.latency.get(metric)
    return words.quantity(figure.p50, METRICS[metric]) if figure else words.NONE


def short(report: BenchReport) -> list[tuple[str, str]]:
    """One row of the overview."""
    counts = report.timings == "valid"
    return [
        ("Accuracy", words.percent(report.accuracy.artifact.value)),
        ("Gain left", words.percent(report.accuracy.retained_gain, 0)),
        ("TTFT", median(report, "ttft_s") if counts else "no verdict"),
        ("Decoding", median(report, "tokens_per_s") if counts else "no verdict"),
        ("Memory", "no verdict" if report.emulated else words.size(report.memory.peak_bytes)),
        ("Size", words.size(report.size_bytes)),
    ]


def tiles(report: BenchReport) -> list[tuple[str, str, str]]:
    """The six figures that are asked for first."""
    found = report.accuracy
    lower = found.retained_gain_lower
    least = "no gain beyond noise" if lower is None else words.at_least(lower)
    valid = report.timings == "valid"
    ttft, speed = (report.latency.get(name) for name in ("ttft_s", "tokens_per_s"))
    remarks = [
        f"{words.interval(figure)}" if valid and figure and figure.ci95 else "" if valid else "gives no verdict"
        for figure in (ttft, speed)
    ]
    return [
        ("On-device accuracy", words.percent(found.artifact.value), words.percent_range(found.artifact.ci95)),
        ("Gain left", words.percent(found.retained_gain, 0), least),
        ("Time to first token", median(report, "ttft_s"), remarks[0]),
        ("Decoding", median(report, "tokens_per_s"), remarks[1]),
        ("Peak memory", words.size(report.memory.peak_bytes), "gives no verdict" if report.emulated else ""),
        ("Size on disk", words.size(report.size_bytes), ""),
    ]


def accuracy_note(data: BenchData) -> str:
    """Number of questions and pictures, and what the intervals are."""
    n = data.report.accuracy.artifact.n
    pictures = len({row.image for row in data.answers})
    about = f" about {words.plural(pictures, 'picture')}" if pictures else ""
    return (
        f"The same {words.plural(n, 'question')}{about} for all three, greedy decoding. "
        "Lines are 95 % intervals; questions about one picture stand and fall together."
    )


def budgets(report: BenchReport) -> list[tuple[str, str, str, str, str]]:
    """(name, limit, measured, class, word)."""
    rows = []
    for line in report.budgets:
        sense = "at least" if line.name == "tokens_per_s" else "at most"
        limit = f"{sense} {words.budget_value(line, line.limit)}"
        measured = words.budget_value(line, line.measured)
        rows.append((words.BUDGET_NAMES[line.name], limit, measured, BUDGET_CLASSES[line.met], words.budget_word(line)))
    return rows


def sample_view(row: AnswerRow, data: BenchData) -> SampleView:
    """One sample with its picture."""
    accepted = " / ".join(dict.fromkeys(row.answers)) or words.NONE
    return SampleView(row, story(row), accepted, data.pictures.get(row.picture or ""), drawing.marks(row))


def samples_note(data: BenchData) -> str:
    """How many of how many, and which."""
    shown = len(pick(data.answers))
    return f"{shown} of {words.plural(len(data.answers), 'question')}, those first where the models differ."


def environment(report: BenchReport) -> list[tuple[str, str]]:
    """(name, value) of what was used."""
    used = report.environment
    way = "the host itself" if used.transport == "local" else f"reached by {used.transport}"
    rows = [
        ("Device", f"{report.target}, {way}" + (", emulated" if report.emulated else "")),
        ("Processor", f"{used.cpu} ({used.machine}), {words.plural(used.cores, 'usable core')}"),
        ("Instruction sets", ", ".join(used.cpu_features) or "none that matters was found"),
        ("System", used.os),
        ("Runtime", f"{used.runtime}, {used.backend}"),
        ("Threads", "unknown" if used.threads is None else str(used.threads)),
    ]
    return [*rows, ("Measured", f"{report.created} (UTC, clock of the host)"), ("Bundle", report.bundle_sha256)]


def readings(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """(dotted name, value) of nested readings; what a device hides is said with its reason.

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
        yield name, ", ".join(plain(one) for one in value) or words.NONE
    else:
        yield name, plain(value)


def plain(value: Any) -> str:
    """A single reading.

    >>> plain(22705204.0), plain(None), plain(True)
    ('22705204', 'unknown', 'yes')
    """
    if value is None or isinstance(value, bool):
        return "unknown" if value is None else "yes" if value else "no"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def method(data: BenchData) -> list[str]:
    """What stands behind the figures."""
    report = data.report
    lines = ["Every question was asked once for the accuracy, with greedy decoding."]
    ttft = report.latency.get("ttft_s")
    if ttft and ttft.n:
        turns = ", in turns with base in the same scheme" if report.base_latency else ""
        lines.append(
            f"Timings: {words.plural(ttft.n, 'warm answer')} of the artifact{turns}; "
            "intervals are 95 % bootstrap intervals of the median."
        )
    lines.append(f"Timings are {report.timings}.")
    lines.append(f"Peak memory: {report.memory.method}.")
    lines.append(f"Energy: {report.energy_reason or words.NONE}.")
    lines.append(
        "The verdict: McNemar's exact test against base, and the lower bound of the share of the gain that is left."
    )
    return lines
