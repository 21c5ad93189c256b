"""Whether timings count, which budgets are met, what to be careful with, and the verdict of the whole benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from mpa_edge.bench.results.probe import Probe, known
from mpa_edge.bench.results.records import BenchWord, BudgetLine, Figure, MemoryResult
from mpa_edge.bench.results.sensors import count_cores, hottest
from mpa_edge.config.target import Budgets, Thermal
from mpa_edge.metrics.gain import Word

# a larger share of all cores that other programs keep busy is reported
BUSY_SHARE = 0.3
SLOW_GOVERNORS = ("powersave", "conservative")
POWER_SAVERS = ("battery saver", "low-power", "quiet", "cool")


def budget_lines(
    budgets: Budgets, latency: Mapping[str, Figure], memory: MemoryResult, counts: bool
) -> tuple[BudgetLine, ...]:
    """One line for each budget. `counts`: whether figures of this run may be judged (not emulated, not throttled).

    The median time to the first token is judged, as the target's budget is meant for a usual question.

    >>> made = budget_lines(Budgets(memory_bytes=2_000_000, ttft_s=2.0, tokens_per_s=10.0), {},
    ...                     MemoryResult(peak_bytes=1_000_000, method="VmHWM"), True)
    >>> [(line.name, line.met, line.by) for line in made]
    [('memory_bytes', True, 0.5), ('ttft_s', None, None), ('tokens_per_s', None, None)]
    """
    ttft_s, tokens_per_s = (latency[name].p50 if name in latency else None for name in ("ttft_s", "tokens_per_s"))
    return (
        budget_line("memory_bytes", budgets.memory_bytes, memory.peak_bytes if counts else None),
        budget_line("ttft_s", budgets.ttft_s, ttft_s if counts else None),
        budget_line("tokens_per_s", budgets.tokens_per_s, tokens_per_s if counts else None),
    )


def budget_line(
    name: Literal["memory_bytes", "ttft_s", "tokens_per_s"], limit: float, measured: float | None
) -> BudgetLine:
    """A limit and its measurement; a speed must not be below its limit, all else not above.

    >>> budget_line("ttft_s", 2.0, 3.0).by, budget_line("tokens_per_s", 10.0, 15.0).by
    (-0.5, 0.5)
    """
    if measured is None:
        return BudgetLine(name=name, limit=limit, measured=None, met=None, by=None)
    room = measured - limit if name == "tokens_per_s" else limit - measured
    return BudgetLine(name=name, limit=limit, measured=measured, met=room >= 0, by=round(room / limit, 4))


def within_budgets(lines: tuple[BudgetLine, ...]) -> bool:
    """Whether every budget is met; one that cannot be judged is not."""
    return all(line.met is True for line in lines)


def invalid_reasons(probe: Probe, throttled: str | None = None) -> tuple[str, ...]:
    """Why timings, memory and energy do not count; empty where they do. `throttled`: see `sensors.throttled`.

    >>> invalid_reasons(Probe(emulated=True, emulated_why="qemu-aarch64 runs this shell"))
    ('emulated: qemu-aarch64 runs this shell',)
    >>> invalid_reasons(Probe(emulated=False), "tj at 91 C")
    ('throttled: tj at 91 C',)
    """
    found = []
    if known(probe.emulated):
        found.append(f"emulated: {known(probe.emulated_why) or 'the probe does not say how it knows'}")
    if throttled:
        found.append(f"throttled: {throttled}")
    return tuple(found)


def cautions(probe: Probe, thermal: Thermal, drifts: Mapping[str, float] | None = None) -> tuple[str, ...]:
    """What a reader should know although timings count.

    `probe`: the device before the job; `drifts`: metric -> `timing.drift`.

    >>> cautions(Probe(emulated=False, load_average=(1.5, 1.0, 1.0), affinity="0-1"), Thermal(start_below_c=None,
    ...          throttle_at_c=None, cool_down_s=0))
    ('other programs were running: load average 1.50 on 2 cores before the start',)
    """
    found = []
    load, cores = known(probe.load_average), count_cores(probe)
    if load is not None and cores is not None and load[0] > BUSY_SHARE * cores:
        found.append(f"other programs were running: load average {load[0]:.2f} on {cores} cores before the start")
    if slow := sorted({name for each in probe.frequencies if (name := known(each.governor)) in SLOW_GOVERNORS}):
        found.append(f"the governor is {', '.join(slow)}: it may not have run at full speed")
    zone, limit_c = hottest(probe), thermal.start_below_c
    if zone is not None and limit_c is not None and zone[1] >= limit_c:
        found.append(f"it started at {zone[1]:.0f} C ({zone[0]}), above the target's limit of {limit_c:.0f} C")
    if (mode := known(probe.power_mode)) in POWER_SAVERS:
        found.append(f"the power mode is {mode}")
    if kind := known(probe.virtual):
        found.append(f"it is a virtual machine ({kind}): other guests of its host may slow it down")
    if known(probe.emulated) is None:
        found.append("whether it is emulated is not known")
    found += [f"{name} drifted by {share:+.0%} during the run" for name, share in (drifts or {}).items() if share]
    return tuple(found)


def overall(accuracy: Word, timings_invalid: bool) -> BenchWord:
    """The verdict of the benchmark: a lost gain is worse than a timing that does not count.

    >>> overall("lost", True), overall("holds", True), overall("inconclusive", False)
    ('lost', 'invalid', 'inconclusive')
    """
    if accuracy == "lost":
        return "lost"
    return "invalid" if timings_invalid else accuracy
