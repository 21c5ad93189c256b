"""Numbers and verdicts in words, the same in HTML and on the terminal."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from mpa_edge.bench.results.records import AcceleratorResult, BenchReport, Figure, Sweep
from mpa_edge.questions import measure_of
from mpa_edge.questions.own import SILVER_NOTE
from mpa_edge.types import Truth

NONE = "–"
LONGEST_TEXT = 400
# characters that are invisible or reverse the text around them: shown by their code
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
JOINERS = {"\u200c", "\u200d"}
PLAIN_SPACE = {"\n", "\t", "\r"}
SIGNS = {"holds": "✓", "lost": "✗", "inconclusive": "?", "invalid": "!"}
HEADLINES = {
    "holds": "The gain holds",
    "lost": "The gain is lost",
    "inconclusive": "Not settled yet",
    "invalid": "Timings do not count",
}
METRIC_NAMES = {
    "load_s": "load the model, once",
    "preprocess_s": "prepare the image",
    "vision_encode_s": "vision encoder",
    "prefill_s": "read the prompt (prefill)",
    "ttft_s": "time to first token (TTFT)",
    "tpot_s": "time per token (TPOT)",
    "total_s": "whole answer",
    "tokens_per_s": "decoding speed",
    "tokens": "tokens of an answer",
}
MEASURES: dict[Truth, str] = {
    "labels": "On-device accuracy",
    "reviewed": "True on-device accuracy",
    "teacher": "Agreement with teacher",
}
BYTE_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def computed_by(found: AcceleratorResult) -> str:
    """What computed, with its shares.

    >>> computed_by(AcceleratorResult(asked=("openvino",), there=(), used="openvino", device="Xeon", missing=(),
    ...     elsewhere=(), node_share=None, time_share={"openvino": 0.98, "cpu": 0.02}, software=False, build_s=2.0,
    ...     gpu_memory_bytes=None))
    'openvino (Xeon), 98 % of the time; engines built in 2.00 s'
    """
    parts = [f"{found.used} ({found.device})" if found.device else found.used]
    for share, of in ((found.time_share, "time"), (found.node_share, "nodes")):
        if share:
            parts.append(f"{percent(share.get(found.used, 0.0), 0)} of the {of}")
    built = "" if found.build_s is None else f"; engines built in {quantity(found.build_s, 's')}"
    memory = "" if found.gpu_memory_bytes is None else f"; {size(found.gpu_memory_bytes)} of GPU memory"
    return f"{', '.join(parts)}{built}{memory}"


def visible(text: str, longest: int = LONGEST_TEXT) -> str:
    r"""Text as it may be shown: nothing invisible, nothing that reverses the text around it, not too long.

    >>> visible("a\u202eb\x07"), visible("one\ntwo"), visible("x" * 9, 4)
    ('a⟨U+202E⟩b⟨U+0007⟩', 'one two', 'xxxx… (9 characters)')
    """
    cut = text[:longest] + f"… ({len(text):,} characters)" if len(text) > longest else text
    hidden = {char for char in set(cut) - JOINERS if unicodedata.category(char) in HIDDEN}
    return "".join(" " if char in PLAIN_SPACE else f"⟨U+{ord(char):04X}⟩" if char in hidden else char for char in cut)


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage.

    >>> percent(0.675), percent(-0.12, 0), percent(None)
    ('67.5 %', '−12 %', '–')
    """
    return NONE if value is None else f"{100 * value:.{digits}f} %".replace("-", "−")


def percent_range(interval: tuple[float, float]) -> str:
    """An interval of shares.

    >>> percent_range((0.6321, 0.714))
    '63.2 to 71.4 %'
    """
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def rounded(value: float) -> str:
    """Three significant digits, no exponent.

    >>> [rounded(value) for value in (0, 0.01234, 1.234, 12.34, 123.4, 12345.6)]
    ['0', '0.0123', '1.23', '12.3', '123', '12,346']
    """
    if value == 0:
        return "0"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
    return f"{value:,.{digits}f}"


def size(value: float | None) -> str:
    """Bytes in decimal units.

    >>> size(456_000_000), size(512), size(None)
    ('456 MB', '512 B', '–')
    """
    if value is None:
        return NONE
    factor, unit = next(((f, u) for f, u in BYTE_UNITS if abs(value) >= f), (1, "B"))
    return f"{rounded(value / factor)} {unit}"


def quantity(value: float | None, unit: str) -> str:
    """A value with its unit, at a readable scale.

    >>> quantity(0.0123, "s"), quantity(2.5, "s"), quantity(0.004, "s/token"), quantity(31.26, "tokens/s")
    ('12.3 ms', '2.50 s', '4.00 ms/token', '31.3 tok/s')
    """
    if value is None:
        return NONE
    if unit in ("s", "s/token") and abs(value) < 1:
        return f"{rounded(1000 * value)} m{unit}"
    return f"{rounded(value)} {unit.replace('tokens/s', 'tok/s')}"


def interval(figure: Figure) -> str:
    """95 % interval of a median, in the unit of the median itself.

    >>> interval(Figure(unit="s", n=9, p50=0.0123, p90=1, p99=1, ci95=(0.0119, 0.0131)))
    '11.9 to 13.1'
    """
    if figure.ci95 is None:
        return NONE
    small = figure.unit in ("s", "s/token") and figure.p50 is not None and abs(figure.p50) < 1
    low, high = (1000 * end if small else end for end in figure.ci95)
    return f"{rounded(low)} to {rounded(high)}"


def signed(share: float) -> str:
    """A change, with its sign.

    >>> signed(0.123), signed(-0.05), signed(0.0)
    ('+12 %', '−5.0 %', '±0 %')
    """
    if abs(share) < 0.0005:
        return "±0 %"
    digits = 0 if abs(share) >= 0.0995 else 1
    return f"{'−' if share < 0 else '+'}{100 * abs(share):.{digits}f} %"


def plural(n: int, word: str) -> str:
    """A count with its noun.

    >>> plural(1, "question"), plural(1200, "question")
    ('1 question', '1,200 questions')
    """
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def joined(texts: Sequence[str]) -> str:
    """Several things as one phrase.

    >>> joined(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def tally(verdicts: Sequence[str]) -> str:
    """How many of each verdict, the worst first.

    >>> tally(["holds", "lost", "holds"])
    '1 lost, 2 hold'
    """
    many = {"lost": "lost", "invalid": "without valid timings", "inconclusive": "not settled", "holds": "hold"}
    count = Counter(verdicts)
    return ", ".join(
        f"{count[word]} {'holds' if (word, count[word]) == ('holds', 1) else name}"
        for word, name in many.items()
        if count[word]
    )


def settings_text(settings: Mapping[str, str | int]) -> str:
    """A setting of a sweep on one line.

    >>> settings_text({"threads": 2, "image_budget": 1, "scheme": "onnx-int8"})
    'onnx-int8, 2 threads, 1 tile'
    """
    units = {"threads": "thread", "image_budget": "tile"}
    ordered = sorted(settings.items(), key=lambda item: item[0] != "scheme")
    counted = {name: f" {unit}{'' if settings.get(name) == 1 else 's'}" for name, unit in units.items()}
    return ", ".join(f"{value}{counted.get(name, '')}" for name, value in ordered)


def sweep_sentence(sweep: Sweep) -> str:
    """The recommendation; an index that is not there is none."""
    chosen = next((point for i, point in enumerate(sweep.points) if i == sweep.recommended), None)
    advice = f"Use {settings_text(chosen.settings)}" if chosen else "None is recommended"
    return f"{advice}: {sweep.reason}."


def heading(truth: Truth) -> str:
    """Name of the measure, for the head of a table.

    >>> heading("teacher")
    'Agreement with the teacher'
    """
    return measure_of(truth).capitalize()


def headline(report: BenchReport) -> str:
    """The verdict in a few words; of an invalid benchmark also what its accuracy says."""
    if report.verdict == "invalid":
        unsettled = f"{measure_of(report.truth)} is not settled"
        said = {"holds": "the gain holds", "lost": "the gain is lost", "inconclusive": unsettled}
        return f"{HEADLINES['invalid']}; {said[report.accuracy_verdict]}"
    return HEADLINES[report.verdict]


def summary(report: BenchReport) -> str:
    """What the verdict is based on, in two or three sentences."""
    found = report.accuracy
    share, lower = found.retained_gain, found.retained_gain_lower
    if share is None:
        retained = "Alignment brought no gain here."
    elif share <= 0:
        retained = "Nothing of the gain is left."
    else:
        least = "" if lower is None else f", {at_least(lower)} with 95 % confidence" if lower > 0 else ", or none"
        retained = f"{percent(share, 0)} of the gain is left{least}."
    right = "as its teacher does" if report.truth == "teacher" else "right"
    text = (
        f"On {report.target}, {report.scheme} answers {percent(found.artifact.value)} of "
        f"{plural(found.artifact.n, 'question')} {right}. Before alignment it was {percent(found.base.value)}, "
        f"after it in full precision {percent(found.aligned.value)}."
    )
    return f"{text} {retained} {settling(report)}".strip()


def at_least(lower: float) -> str:
    """Lower bound of the share of the gain that is left.

    >>> at_least(0.83), at_least(-0.4)
    ('at least 83 %', 'perhaps none')
    """
    return f"at least {percent(lower, 0)}" if lower > 0 else "perhaps none"


def settling(report: BenchReport) -> str:
    """How many questions would settle it; empty where it is settled."""
    if report.accuracy_verdict != "inconclusive":
        return ""
    if report.review:
        return f"Review more questions to settle it: mpa-edge review RUN; {report.review.n_reviewed:,} are."
    if report.n_to_settle is None:
        return "No number of questions like these would settle it."
    return f"About {plural(report.n_to_settle, 'question')} would settle it; {report.accuracy.artifact.n:,} were asked."


def truth_sentences(report: BenchReport) -> list[str]:
    """What the figures are where nobody had labelled the questions; nothing where somebody had."""
    if report.truth == "teacher":
        return [f"These figures are {SILVER_NOTE}.", "A review makes them accuracies: mpa-edge review RUN."]
    found = report.review
    if found is None:
        return []
    silver = ", ".join(percent(share) for share in found.agreement)
    how = plural(found.n_reviewed, "reviewed question")
    low, high = (f"{100 * end:+.1f}" for end in found.gain_ci95)
    return [
        f"Accuracies are the true ones, estimated from the agreement with the teacher ({silver}) and {how}.",
        f"True gain before export: {100 * found.gain:+.1f} points, 95 % interval {low} to {high} ({found.method}).",
        *(f"{line[0].upper()}{line[1:]}." for line in found.quality),
    ]


def margin_sentence(report: BenchReport) -> str:
    """Non-inferiority against aligned."""
    points = f"{100 * report.margin:g} points" + (" of agreement with the teacher" if report.truth != "labels" else "")
    if report.not_worse:
        return f"Not worse than aligned by more than {points}, with 95 % confidence."
    return f"It cannot be ruled out that it is worse than aligned by more than {points}."


def flips_sentence(report: BenchReport) -> str:
    """How many answers became right or wrong against base, with McNemar's test."""
    flips, p = report.accuracy.flips, report.accuracy.p_mcnemar
    if report.truth == "reviewed":
        return (
            f"Against base, {plural(flips.gained, 'answer')} turned into the teacher's and {flips.lost:,} into another."
        )
    turned, back = ("turned right", "turned wrong")
    if report.truth == "teacher":
        turned, back = "now agree with the teacher", "no longer do"
    return (
        f"Against base, {plural(flips.gained, 'answer')} {turned} and {flips.lost:,} {back} "
        f"(McNemar's exact test, one-sided: {'p < 0.0001' if p < 0.0001 else f'p = {p:.2g}'})."
    )


def energy_sentence(report: BenchReport) -> str:
    """Energy, or why there is none."""
    found = report.energy
    if found is None:
        return f"Not measured: {report.energy_reason or 'no reason was given'}."
    return (
        f"{rounded(found.joules_per_token)} J per generated token: {rounded(found.mean_power_w)} W while it answered, "
        f"{rounded(found.idle_power_w)} W before, {found.samples:,} readings of {found.source}."
    )
