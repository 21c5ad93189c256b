"""Two benchmarks side by side: what changed by more than noise.

- a timing: the 95 % intervals of the medians lie apart, and the medians differ by more than 5 %
- accuracy: the questions that both were asked, paired. The 95 % bootstrap interval of the difference (whole pictures
  are drawn) excludes 0, and the exact sign test on the questions whose score changed (McNemar's, for scores of 0 and 1)
  has p < 0.05
- memory and size have no interval: more than 5 % counts; a repeated measurement of memory agrees within 3 %

Timings that are invalid in either run are not compared, nor is memory where an emulator ran.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mpa_edge.bench.report.read import BenchData
from mpa_edge.bench.report.words import METRIC_NAMES, percent, plural, quantity, signed
from mpa_edge.bench.results.records import Figure
from mpa_edge.metrics.paired import bootstrap_ci95, mcnemar_p
from mpa_edge.types import Record

Outcome = Literal["regression", "improvement", "no clear change", "not compared"]
LEAST_CHANGE = 0.05
LEVEL = 0.05
RESAMPLES = 2000
# tpot_s is left out: it is tokens_per_s upside down
TIMED = ("ttft_s", "vision_encode_s", "prefill_s", "preprocess_s", "tokens_per_s", "total_s", "load_s")
MORE_IS_BETTER = {"tokens_per_s"}


class Change(Record):
    """One quantity before and after."""

    name: str
    """accuracy, a metric of METRICS, peak_bytes, size_bytes or verdict."""
    title: str
    """The same for people."""
    before: str
    """With its unit."""
    after: str
    """With its unit."""
    change: str
    """In points or per cent, with its sign; empty where it was not compared."""
    outcome: Outcome
    """Beyond noise or not."""
    why: str
    """What the outcome rests on."""


@dataclass(frozen=True)
class Comparison:
    """Two benchmarks and what changed between them."""

    before: BenchData
    """The older, or the one to hold the other against."""
    after: BenchData
    """The newer."""
    changes: tuple[Change, ...]
    """One for each quantity."""
    differences: tuple[str, ...]
    """What else was different: machine, runtime, threads."""

    @property
    def regressions(self) -> tuple[Change, ...]:
        """Those changes that are worse beyond noise."""
        return tuple(change for change in self.changes if change.outcome == "regression")


def compare(before: BenchData, after: BenchData) -> list[Change]:
    """Every quantity of two benchmarks, the most important first."""
    timings = [_timing(name, before, after) for name in TIMED if _measured(name, before, after)]
    sizes = [_sized("peak_bytes", "peak memory", before, after), _sized("size_bytes", "size", before, after)]
    return [_verdict(before, after), _accuracy(before, after), *timings, *sizes]


def compare_all(before: Sequence[BenchData], after: Sequence[BenchData]) -> tuple[list[Comparison], list[str]]:
    """(comparisons, what has no counterpart): same target and scheme, or the only benchmark of each side."""
    old, new = ({(one.report.target, one.report.scheme): one for one in side} for side in (before, after))
    pairs = [(old[key], new[key]) for key in new if key in old]
    if not pairs and len(before) == len(after) == 1:
        pairs = [(before[0], after[0])]
    met = {one.folder for pair in pairs for one in pair}
    alone = [f"{one.title} has no counterpart" for one in (*before, *after) if one.folder not in met]
    return [Comparison(a, b, tuple(compare(a, b)), tuple(differences(a, b))) for a, b in pairs], alone


def differences(before: BenchData, after: BenchData) -> list[str]:
    """What was not the same in two benchmarks apart from the model, in words.

    A regression may come from here.
    """
    old, new = before.report, after.report
    used = ("machine", "cpu", "cores", "os", "runtime", "backend", "threads", "transport")
    read = ("governor", "power_mode")
    here, there = old.environment, new.environment
    found: list[tuple[str, object, object]] = [("target", old.target, new.target), ("scheme", old.scheme, new.scheme)]
    found += [(name, getattr(here, name), getattr(there, name)) for name in used]
    found += [(name.replace("_", " "), here.readings.get(name), there.readings.get(name)) for name in read]
    return [f"{name}: {_plain(a)} → {_plain(b)}" for name, a, b in found if _plain(a) != _plain(b)]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("value", value)
    return "unknown" if value is None else str(value)


def _verdict(before: BenchData, after: BenchData) -> Change:
    old, new = before.report.verdict, after.report.verdict
    lost = after.report.accuracy_verdict == "lost" and before.report.accuracy_verdict != "lost"
    outcome: Outcome = "regression" if lost else "no clear change"
    why = "the gain is lost, with 95 % confidence" if lost else "a word, not a measurement: see the accuracy"
    return Change(
        name="verdict",
        title="verdict",
        before=old,
        after=new,
        change="" if old == new else "changed",
        outcome=outcome,
        why=why,
    )


def _accuracy(before: BenchData, after: BenchData) -> Change:
    old = {row.id: row.scores[2] for row in before.answers}
    common = [row for row in after.answers if row.id in old]
    values = (before.report.accuracy.artifact.value, after.report.accuracy.artifact.value)
    if not common:
        why = "no question was asked in both, or answers.jsonl is missing"
        return _change("accuracy", "accuracy", values, percent, "", "not compared", why)
    shifts = [row.scores[2] - old[row.id] for row in common]
    low, high = bootstrap_ci95(shifts, [row.image for row in common], resamples=RESAMPLES, seed=0)
    up, down = sum(shift > 0 for shift in shifts), sum(shift < 0 for shift in shifts)
    clear = mcnemar_p(up, down) < LEVEL and (low > 0 or high < 0)
    outcome: Outcome = "no clear change" if not clear else "regression" if high < 0 else "improvement"
    why = (
        f"{up} better and {down} worse of {plural(len(common), 'common question')}, "
        f"95 % interval {_points(low)} to {_points(high)} points"
    )
    pair = (sum(old[row.id] for row in common) / len(common), sum(row.scores[2] for row in common) / len(common))
    return _change("accuracy", "accuracy", pair, percent, f"{_points(pair[1] - pair[0])} points", outcome, why)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _measured(name: str, before: BenchData, after: BenchData) -> bool:
    return all(name in one.report.latency and one.report.latency[name].p50 is not None for one in (before, after))


def _timing(name: str, before: BenchData, after: BenchData) -> Change:
    old, new = before.report.latency[name], after.report.latency[name]
    values = (old.p50, new.p50)

    def text(value: float | None) -> str:
        return quantity(value, new.unit)

    invalid = [one for one in (before, after) if one.report.timings != "valid"]
    if invalid:
        why = "; ".join(dict.fromkeys(one.report.timings for one in invalid))
        return _change(name, METRIC_NAMES[name], values, text, "", "not compared", why)
    share = _share(old.p50, new.p50)
    outcome, why = _judge(name, old, new, share)
    return _change(name, METRIC_NAMES[name], values, text, signed(share), outcome, why + _control(name, before, after))


def _judge(name: str, old: Figure, new: Figure, share: float) -> tuple[Outcome, str]:
    """Intervals apart and more than 5 %."""
    if old.ci95 is None or new.ci95 is None:
        return "no clear change", "measured once: no interval to tell a change from noise"
    if abs(share) <= LEAST_CHANGE:
        return "no clear change", f"within {LEAST_CHANGE:.0%}"
    if old.ci95[1] >= new.ci95[0] and new.ci95[1] >= old.ci95[0]:
        return "no clear change", "the intervals of the medians overlap"
    worse = (share < 0) == (name in MORE_IS_BETTER)
    return "regression" if worse else "improvement", f"intervals apart, {old.n} and {new.n} samples"


def _control(name: str, before: BenchData, after: BenchData) -> str:
    """How the base model moved meanwhile: it was timed in turns and has not changed, so it shows the machine's part."""
    old, new = (one.report.base_latency.get(name) for one in (before, after))
    if old is None or new is None or not old.p50 or new.p50 is None:
        return ""
    return f"; base moved by {signed(_share(old.p50, new.p50))}"


def _sized(name: str, title: str, before: BenchData, after: BenchData) -> Change:
    is_memory = name == "peak_bytes"
    values = tuple(one.report.memory.peak_bytes if is_memory else one.report.size_bytes for one in (before, after))
    old, new = values

    def text(value: float | None) -> str:
        return quantity(value, "bytes")

    if old is None or new is None:
        return _change(name, title, (old, new), text, "", "not compared", "not measured in both")
    if is_memory and (before.report.emulated or after.report.emulated):
        return _change(name, title, (old, new), text, "", "not compared", "an emulator ran it")
    share = _share(old, new)
    outcome: Outcome = "no clear change" if abs(share) <= LEAST_CHANGE else "regression" if share > 0 else "improvement"
    return _change(name, title, (old, new), text, signed(share), outcome, f"counts from {LEAST_CHANGE:.0%} on")


def _share(old: float | None, new: float | None) -> float:
    """Relative change; 0 where there is nothing to relate to.

    >>> _share(2.0, 3.0), _share(0.0, 1.0)
    (0.5, 0.0)
    """
    return (new - old) / old if old and new is not None else 0.0


def _change(
    name: str,
    title: str,
    values: tuple[float | None, float | None],
    text: Callable[[float | None], str],
    change: str,
    outcome: Outcome,
    why: str,
) -> Change:
    before, after = map(text, values)
    return Change(name=name, title=title, before=before, after=after, change=change, outcome=outcome, why=why)
