"""Two benchmarks compared: what changed by more than noise; and the report as one JSON document.

- a timing: the 95 % intervals of the medians lie apart, and the medians differ by more than 5 %
- accuracy: the questions that both were asked, paired. The 95 % interval of the difference (whole images are
  drawn) excludes 0, and the exact sign test on the questions whose score changed (McNemar's, for scores of 0 and 1) has
  p < 0.05
- memory and size have no interval: more than 5 % counts; a repeated measurement of memory agrees within 3 %

Timings that are invalid in either run are not compared, nor is memory where an emulator ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mpa_edge.bench.report.read import BenchData
from mpa_edge.bench.report.words import METRIC_NAMES, percent, plural, quantity, signed, size
from mpa_edge.metrics.paired import bootstrap_ci95, mcnemar_p
from mpa_edge.questions import measure_of

Outcome = Literal["regression", "improvement", "no clear change", "not compared"]
LEAST_CHANGE = 0.05
LEVEL = 0.05
RESAMPLES = 2000
# without tpot_s, the inverse of tokens_per_s
TIMED = ("ttft_s", "vision_encode_s", "prefill_s", "preprocess_s", "tokens_per_s", "total_s", "load_s")
MORE_IS_BETTER = {"tokens_per_s"}


@dataclass(frozen=True)
class Change:
    """One quantity before and after."""

    name: str
    """accuracy, a metric of METRICS, peak_bytes, size_bytes or verdict."""
    title: str
    """The same in words."""
    before: str
    """With its unit."""
    after: str
    """With its unit."""
    change: str
    """In points or per cent, with its sign; empty where it was not compared."""
    outcome: Outcome
    """Beyond noise or not."""
    why: str
    """What the outcome is based on."""


@dataclass(frozen=True)
class Comparison:
    """Two benchmarks and what changed between them."""

    before: BenchData
    """The older, or the one to compare with."""
    after: BenchData
    """The newer."""
    changes: tuple[Change, ...]
    """One for each quantity."""
    differences: tuple[str, ...]
    """Other differences that may be the cause of a change: machine, runtime, threads."""

    @property
    def regressions(self) -> tuple[Change, ...]:
        """Those changes that are worse beyond noise."""
        return tuple(change for change in self.changes if change.outcome == "regression")


def compare(before: BenchData, after: BenchData) -> list[Change]:
    """Every quantity of two benchmarks, the most important first."""
    old, new = before.report, after.report
    both = (old.latency, new.latency)
    timings = [name for name in TIMED if all(name in one and one[name].p50 is not None for one in both)]
    lost = new.accuracy_verdict == "lost" and old.accuracy_verdict != "lost"
    verdict = Change(
        "verdict",
        "verdict",
        before=old.verdict,
        after=new.verdict,
        change="" if old.verdict == new.verdict else "changed",
        outcome="regression" if lost else "no clear change",
        why="the gain is lost, with 95 % confidence" if lost else "a word, not a measurement: see the accuracy",
    )
    return [
        verdict,
        _accuracy(before, after),
        *(_timing(name, before, after) for name in timings),
        _size("peak_bytes", "peak memory", before, after),
        _size("size_bytes", "size", before, after),
    ]


def compare_all(before: Sequence[BenchData], after: Sequence[BenchData]) -> tuple[list[Comparison], list[str]]:
    """(comparisons, what has no counterpart): same target, scheme and accelerator, or the only ones of each side."""
    old, new = (
        {(one.report.target, one.report.scheme, one.accelerator): one for one in side} for side in (before, after)
    )
    pairs = [(old[key], new[key]) for key in new if key in old]
    if not pairs and len(before) == len(after) == 1:
        pairs = [(before[0], after[0])]
    paired = {one.folder for pair in pairs for one in pair}
    alone = [f"{one.title} has no counterpart" for one in (*before, *after) if one.folder not in paired]
    return [Comparison(a, b, tuple(compare(a, b)), tuple(differences(a, b))) for a, b in pairs], alone


def differences(before: BenchData, after: BenchData) -> list[str]:
    """Differences between two benchmarks apart from the model, which may be the cause of a change."""
    old, new = before.report, after.report
    here, there = old.environment, new.environment
    used = ("machine", "cpu", "cores", "os", "runtime", "backend", "threads", "transport")
    found: list[tuple[str, object, object]] = [("target", old.target, new.target), ("scheme", old.scheme, new.scheme)]
    found.append(("answers compared with", old.truth, new.truth))
    found += [(name, getattr(here, name), getattr(there, name)) for name in used]
    for name in ("governor", "power_mode"):
        found.append((name.replace("_", " "), here.readings.get(name), there.readings.get(name)))
    return [f"{name}: {_plain(a)} → {_plain(b)}" for name, a, b in found if _plain(a) != _plain(b)]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("value", value)
    return "unknown" if value is None else str(value)


def _accuracy(before: BenchData, after: BenchData) -> Change:
    old = {row.id: row.scores[2] for row in before.answers}
    common = [row for row in after.answers if row.id in old]
    values = (before.report.accuracy.artifact.value, after.report.accuracy.artifact.value)
    outcome: Outcome = "not compared"
    change, why = "", "no question was asked in both, or answers.jsonl is missing"
    if common:
        shifts = [row.scores[2] - old[row.id] for row in common]
        low, high = bootstrap_ci95(shifts, [row.cluster for row in common], resamples=RESAMPLES, seed=0)
        up, down = sum(shift > 0 for shift in shifts), sum(shift < 0 for shift in shifts)
        clear = mcnemar_p(up, down) < LEVEL and (low > 0 or high < 0)
        outcome = "no clear change" if not clear else "regression" if high < 0 else "improvement"
        values = (sum(old[row.id] for row in common) / len(common), sum(row.scores[2] for row in common) / len(common))
        change = f"{_points(values[1] - values[0])} points"
        why = (
            f"{up} better and {down} worse of {plural(len(common), 'common question')}, "
            f"95 % interval {_points(low)} to {_points(high)} points"
        )
    was, now = map(percent, values)
    # what was reviewed of the one may not be of the other
    title = measure_of("labels" if after.report.truth == "labels" else "teacher")
    return Change("accuracy", title, before=was, after=now, change=change, outcome=outcome, why=why)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _timing(name: str, before: BenchData, after: BenchData) -> Change:
    """Worse or better if the intervals do not overlap and the medians differ by more than 5 %.

    `why` adds how much base changed: the same model, timed alternately with the artifact, so its change comes from the
    machine.
    """
    old, new = before.report.latency[name], after.report.latency[name]
    share = _share(old.p50, new.p50)
    change, invalid = signed(share), [one.report.timings for one in (before, after) if one.report.timings != "valid"]
    outcome: Outcome = "no clear change"
    if invalid:
        change, outcome, why = "", "not compared", "; ".join(dict.fromkeys(invalid))
    elif old.ci95 is None or new.ci95 is None:
        why = "measured once: no interval to tell a change from noise"
    elif abs(share) <= LEAST_CHANGE:
        why = f"within {LEAST_CHANGE:.0%}"
    elif old.ci95[1] >= new.ci95[0] and new.ci95[1] >= old.ci95[0]:
        why = "the intervals of the medians overlap"
    else:
        outcome = "regression" if (share < 0) == (name in MORE_IS_BETTER) else "improvement"
        why = f"intervals apart, {old.n} and {new.n} samples"
    base, base_now = (one.report.base_latency.get(name) for one in (before, after))
    if not invalid and base and base_now and base.p50 and base_now.p50 is not None:
        why += f"; base changed by {signed(_share(base.p50, base_now.p50))}"
    was, now = (quantity(value, new.unit) for value in (old.p50, new.p50))
    return Change(name, METRIC_NAMES[name], before=was, after=now, change=change, outcome=outcome, why=why)


def _size(name: str, title: str, before: BenchData, after: BenchData) -> Change:
    memory = name == "peak_bytes"
    old, new = (one.report.memory.peak_bytes if memory else one.report.size_bytes for one in (before, after))
    share = _share(old, new)
    outcome: Outcome = "no clear change" if abs(share) <= LEAST_CHANGE else "regression" if share > 0 else "improvement"
    change, why = signed(share), f"counts from {LEAST_CHANGE:.0%} on"
    if old is None or new is None:
        change, outcome, why = "", "not compared", "not measured in both"
    elif memory and (before.report.emulated or after.report.emulated):
        change, outcome, why = "", "not compared", "an emulator ran it"
    return Change(name, title, before=size(old), after=size(new), change=change, outcome=outcome, why=why)


def _share(old: float | None, new: float | None) -> float:
    """Relative change; 0 where there is nothing to relate to.

    >>> _share(2.0, 3.0), _share(0.0, 1.0)
    (0.5, 0.0)
    """
    return (new - old) / old if old and new is not None else 0.0


def report_document(
    benches: Sequence[BenchData], comparisons: Sequence[Comparison] = (), alone: Sequence[str] = ()
) -> dict[str, Any]:
    """`benches` with bench.json, sweep and notes of each; `comparisons`; `regressions`, their number."""
    return {
        "schema_version": 1,
        "benches": [
            {
                "bench": data.report.model_dump(mode="json"),
                "sweep": data.sweep.model_dump(mode="json") if data.sweep else None,
                "notes": list(data.notes),
            }
            for data in benches
        ],
        "comparisons": [
            {
                "before": one.before.title,
                "after": one.after.title,
                "changes": [vars(change) for change in one.changes],
                "differences": list(one.differences),
            }
            for one in comparisons
        ],
        "without_counterpart": list(alone),
        "regressions": sum(len(one.regressions) for one in comparisons),
    }
