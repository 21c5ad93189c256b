"""A soak: answers in a row for minutes or hours. Does memory grow, and does the device slow down?

soak.json, a Soak, lies in runs/NAME/bench/TARGET/SCHEME/soak/. Both verdicts leave out the warm-up: allocators and
caches grow in the first minute, and the first answers meet cold caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpa_edge.bench.device.protocol import Line
from mpa_edge.bench.results.probe import Reading, items, number
from mpa_edge.bench.results.records import Environment
from mpa_edge.bench.results.sensors import hottest, throttled
from mpa_edge.config.target import Thermal
from mpa_edge.types import Record

SOAK = "soak.json"
WARM_UP_SHARE, WARM_UP_S = 0.1, 60.0
LEAST_SAMPLES = 20
MOST_POINTS = 300
# slopes of all pairs of more medians than these take no part of a second
MOST_MEDIANS = 400
LEAST_GROWTH_BYTES, LEAST_GROWTH = 2_000_000, 0.005
LEAST_CHANGE = 0.05
RESAMPLES, RESAMPLED = 1000, 500
DAY_S = 86_400.0
# readings further away from a sample than this are not of its time
NEAR_S = 10.0
Array = NDArray[np.float64]
MemoryWord = Literal["steady", "leaks", "too short"]
SpeedWord = Literal["steady", "throttled", "slower", "too short"]


class MemoryTrend(Record):
    """Whether the process keeps growing."""

    verdict: MemoryWord
    """leaks: it grows through the whole time and through its second half, beyond the noise of both."""
    bytes_per_day: float | None
    """Theil-Sen slope after the warm-up; null where there are too few samples."""
    ci95: tuple[float, float] | None
    """95 % interval of it."""
    why: str
    """In words."""


class SpeedTrend(Record):
    """Whether the end is slower than the beginning."""

    verdict: SpeedWord
    """throttled: slower, and the device says why; slower: it does not."""
    first: float | None
    """Tokens a second in the first fifth after the warm-up."""
    last: float | None
    """Tokens a second in the last fifth."""
    ci95: tuple[float, float] | None
    """95 % bootstrap interval of the change, as a share of the first."""
    why: str
    """In words, with clocks and temperatures."""


class Percentiles(Record):
    """Of the seconds of all answers, from the question to the last token."""

    p50: float
    """Half are below."""
    p95: float
    """19 of 20 are below."""
    p99: float
    """99 of 100 are below."""


class SoakPoint(Record):
    """One moment of a soak, or the mean of some that follow each other."""

    at_s: float
    """Seconds of answering before it."""
    tokens_per_s: float
    """Generated tokens over all of the time, images and prompts included."""
    rss_bytes: float | None
    """Memory of the process, swapped pages included."""
    temperature_c: float | None
    """Of the hottest part of the processor."""
    clock_mhz: float | None
    """Of the fastest group of cores."""


class Soak(Record):
    """soak.json, and what `mpa-edge bench --soak --json` prints."""

    schema_version: Literal[1] = 1
    """Of this document."""
    run: str
    """Name of the run."""
    scheme: str
    """Name of the scheme."""
    target: str
    """Name of the target."""
    created: str
    """When, UTC, ISO 8601, by the host's clock."""
    environment: Environment
    """Of the device."""
    asked_s: float
    """Seconds that were asked for."""
    seconds: float
    """Seconds of answering that were measured."""
    concurrency: int
    """Questions at once."""
    answers: int
    """How many there were."""
    tokens_per_s: float
    """Generated tokens over all of the time."""
    latency_s: Percentiles
    """Of single answers."""
    changed: int
    """Answers that differ from the first one to the same question; decoding is greedy, so none should."""
    processes: int
    """More than one: so many less one died, and were replaced."""
    memory: MemoryTrend
    """Leak verdict."""
    speed: SpeedTrend
    """Throttle verdict."""
    points: tuple[SoakPoint, ...]
    """Over time, at most MOST_POINTS."""
    cautions: tuple[str, ...]
    """What to be careful with."""


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_trend(at_s: ArrayLike, rss_bytes: ArrayLike) -> MemoryTrend:
    """Whether memory grows. Both in the order of time, of one process, its warm-up included.

    The slope is that of Theil and Sen, the median of the slopes of all pairs (Sen 1968, doi
    10.1080/01621459.1968.10480934): an early step or a spike does not move it. Medians of neighbours stand for many
    samples. The slope must be above zero in the second half alone, too: what grows and then stays is a cache. And the
    last third must lie above the first one, by their inner 80 %: what is collected now and then goes up and down.
    """
    t, y = after_warm_up(np.asarray(at_s, float), np.asarray(rss_bytes, float))
    if len(t) < LEAST_SAMPLES:
        return MemoryTrend(verdict="too short", bytes_per_day=None, ci95=None, why=f"{len(t)} samples of its memory")
    from scipy.stats import theilslopes

    t, y = (thinned(each, MOST_MEDIANS) for each in (t, y))
    slope, _, low, high = theilslopes(y, t)
    half = theilslopes(y[len(y) // 2 :], t[len(t) // 2 :])
    grown, third = slope * (t[-1] - t[0]), len(y) // 3
    above = np.percentile(y[-third:], 10) > np.percentile(y[:third], 90)
    leaks = bool(above and min(low, half.low_slope) > 0 and grown > max(LEAST_GROWTH_BYTES, LEAST_GROWTH * y[0]))
    per_day = (
        f"{slope * DAY_S / 1e6:+,.1f} MB a day, 95 % interval {low * DAY_S / 1e6:+,.1f} to {high * DAY_S / 1e6:+,.1f}"
    )
    return MemoryTrend(
        verdict="leaks" if leaks else "steady",
        bytes_per_day=slope * DAY_S,
        ci95=(low * DAY_S, high * DAY_S),
        why=f"{per_day}; {y[0] / 1e6:,.1f} MB after the warm-up, {y[-1] / 1e6:,.1f} MB at the end",
    )


def after_warm_up(t: Array, *others: Array) -> tuple[Array, ...]:
    """The samples after the first tenth of the time, or after its first minute."""
    kept = t >= t[0] + min(WARM_UP_S, WARM_UP_SHARE * (t[-1] - t[0])) if len(t) else t > 0
    return (t[kept], *(other[kept] for other in others))


def thinned(values: Array, most: int) -> Array:
    """Medians of neighbours, at most so many.

    >>> thinned(np.array([1.0, 2.0, 9.0, 4.0, 5.0, 6.0]), 2)
    array([2., 5.])
    """
    parts = np.array_split(values, min(most, len(values)))
    return np.array([np.median(part) for part in parts])


# --- speed ------------------------------------------------------------------------------------------------------------


def speed_trend(
    at_s: ArrayLike,
    seconds: ArrayLike,
    tokens: ArrayLike,
    sign: str | None = None,
    temperature_c: ArrayLike | None = None,
    clock_mhz: ArrayLike | None = None,
) -> SpeedTrend:
    """Whether the last fifth of the time after the warm-up has fewer tokens a second than the first.

    Args:
        at_s: When each sample ended.
        seconds: How long each took.
        tokens: Generated in each.
        sign: A sign of throttling that the device gave, in words.
        temperature_c: At each sample, NaN where nothing was read; None without sensors.
        clock_mhz: As temperature_c.
    """
    times = np.asarray(at_s, float)
    nothing = np.full(len(times), np.nan)
    others = (nothing if each is None else each for each in (temperature_c, clock_mhz))
    t, s, n, hot, clock = after_warm_up(times, *(np.asarray(each, float) for each in (seconds, tokens, *others)))
    fifth = (t[-1] - t[0]) / 5 if len(t) else 0.0
    first, last = (t <= t[0] + fifth, t >= t[-1] - fifth) if len(t) else (t > 0, t > 0)
    if len(t) < LEAST_SAMPLES or not n[first].sum():
        return SpeedTrend(verdict="too short", first=None, last=None, ci95=None, why=f"{len(t)} samples of its speed")
    before, after = (n[part].sum() / s[part].sum() for part in (first, last))
    changes = resampled(n[last], s[last], seed=1) / resampled(n[first], s[first], seed=2) - 1
    low, high = (float(each) for each in np.percentile(changes, [2.5, 97.5]))
    why = [f"{before:,.1f} tokens/s in the first fifth, {after:,.1f} in the last"]
    falls = False
    for values, unit in ((clock, "MHz"), (hot, "C")):
        if np.isfinite(values[first]).any() and np.isfinite(values[last]).any():
            was, now = (float(np.nanmean(values[part])) for part in (first, last))
            falls |= unit == "MHz" and now < (1 - LEAST_CHANGE) * was
            why.append(f"{was:,.0f} to {now:,.0f} {unit}")
    if sign:
        why.append(sign)
    slower = high < 0 and after / before - 1 < -LEAST_CHANGE
    if slower and not (sign or falls):
        why.append("no sensor says why: other programs, or the device hides it")
    verdict: SpeedWord = "steady" if not slower else "throttled" if sign or falls else "slower"
    return SpeedTrend(verdict=verdict, first=float(before), last=float(after), ci95=(low, high), why="; ".join(why))


def resampled(tokens: Array, seconds: Array, seed: int) -> Array:
    """Tokens a second of bootstrap resamples of samples (Efron and Tibshirani 1993, chapter 13)."""
    n = min(RESAMPLED, len(tokens))
    tokens, seconds = (np.array([part.sum() for part in np.array_split(each, n)]) for each in (tokens, seconds))
    drawn = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    return np.asarray(np.maximum(tokens[drawn].sum(1), 1e-9) / seconds[drawn].sum(1))


# --- the document -----------------------------------------------------------------------------------------------------


def near(uptime_s: Array, watch: Sequence[Reading]) -> tuple[Array, Array]:
    """(degrees, MHz) of the reading nearest to each moment by the device's clock; NaN where none is near."""
    timed = [(moment, line) for line in watch if (moment := number(line, "uptime_s")) is not None]
    rows = sorted(timed, key=lambda row: row[0])
    if not rows:
        return np.full(len(uptime_s), np.nan), np.full(len(uptime_s), np.nan)
    moments = np.array([moment for moment, _ in rows])
    hot = np.array([zone[1] if (zone := hottest(line)) else np.nan for _, line in rows])
    clocks = [[khz for each in items(line, "frequencies") if (khz := number(each, "now_khz"))] for _, line in rows]
    clock = np.array([max(each) / 1000 if each else np.nan for each in clocks])
    right = np.clip(np.searchsorted(moments, uptime_s), 0, len(moments) - 1)
    left = np.maximum(right - 1, 0)
    index = np.where(np.abs(moments[left] - uptime_s) < np.abs(moments[right] - uptime_s), left, right)
    far = np.abs(moments[index] - uptime_s) > NEAR_S
    return np.where(far, np.nan, hot[index]), np.where(far, np.nan, clock[index])


def figures_of(
    lines: Sequence[Line], before: Reading, watch: Sequence[Reading], thermal: Thermal
) -> dict[str, object] | None:
    """Everything of a Soak that comes from samples; None where there is none.

    `before`: the device when the job began; `watch`: readings since then.
    """
    samples = [line for line in lines if line.kind == "sample"]
    if not samples:
        return None
    seconds, tokens, uptime_s = (
        np.array([float(line.values[name]) for line in samples]) for name in ("seconds", "tokens", "uptime_s")
    )
    rss = np.array([float(line.values.get("rss_bytes") or np.nan) for line in samples])
    at_s, latencies_s = np.cumsum(seconds), np.concatenate([line.values["latencies_s"] for line in samples])
    hot, clock = near(uptime_s, watch)
    # a process that was replaced begins anew: the one that lived longest tells most
    blocks = np.array([line.block for line in samples])
    longest = max(set(blocks.tolist()), key=lambda block: float(seconds[blocks == block].sum()))
    known = (blocks == longest) & np.isfinite(rss)
    p50, p95, p99 = (float(each) for each in np.percentile(latencies_s, [50, 95, 99]))
    return {
        "seconds": float(seconds.sum()),
        "answers": len(latencies_s),
        "tokens_per_s": float(tokens.sum() / seconds.sum()),
        "latency_s": Percentiles(p50=p50, p95=p95, p99=p99),
        "changed": sum(int(line.values.get("changed", 0)) for line in samples),
        "processes": len(set(blocks.tolist())),
        "memory": memory_trend(at_s[known], rss[known]),
        "speed": speed_trend(at_s, seconds, tokens, throttled(before, watch, thermal), hot, clock),
        "points": points(at_s, seconds, tokens, rss, hot, clock),
    }


def points(at_s: Array, seconds: Array, tokens: Array, *others: Array) -> tuple[SoakPoint, ...]:
    """What is drawn. `others`: memory, temperature and clock at each sample, NaN where nothing was read."""
    made = []
    for part in np.array_split(np.arange(len(at_s)), min(MOST_POINTS, len(at_s))):
        known = [each[part][np.isfinite(each[part])] for each in others]
        rss, hot, clock = (float(each.mean()) if len(each) else None for each in known)
        made.append(
            SoakPoint(
                at_s=float(at_s[part].mean()),
                tokens_per_s=float(tokens[part].sum() / seconds[part].sum()),
                rss_bytes=rss,
                temperature_c=hot,
                clock_mhz=clock,
            )
        )
    return tuple(made)
