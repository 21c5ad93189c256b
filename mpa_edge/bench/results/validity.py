"""Whether timings count, which budgets are met, what to be careful with, and the verdict of the whole benchmark."""

from __future__ import annotations

from collections.abc import Mapping

from mpa_edge.bench.results.accelerators import not_the_accelerator
from mpa_edge.bench.results.probe import Reading, items, number, text
from mpa_edge.bench.results.records import AcceleratorResult, BenchWord, BudgetLine, Figure, MemoryResult
from mpa_edge.bench.results.sensors import count_cores, hottest
from mpa_edge.config.target import BudgetName, Target, Thermal
from mpa_edge.metrics.gain import Word
from mpa_edge.planning.budgets import Limit

# a larger share of all cores that other programs keep busy is reported
BUSY_SHARE = 0.3
SLOW_GOVERNORS = ("conservative", "powersave")
POWER_SAVERS = ("battery saver", "low-power", "quiet", "cool")


def budget_lines(
    limits: Mapping[BudgetName, Limit], latency: Mapping[str, Figure], memory: MemoryResult, counts: bool
) -> tuple[BudgetLine, ...]:
    """One line for each limit. `counts`: whether figures of this run may be judged (not emulated, not throttled).

    The median time to the first token is judged, as the budget is meant for a usual question.
    """
    values: dict[BudgetName, float | None] = {
        "memory_bytes": memory.peak_bytes,
        "ttft_s": latency["ttft_s"].p50 if "ttft_s" in latency else None,
        "tokens_per_s": latency["tokens_per_s"].p50 if "tokens_per_s" in latency else None,
    }
    lines = []
    for name, limit in limits.items():
        measured, met, by = values[name] if counts else None, None, None
        if measured is not None:  # a speed must not be below its limit, all else not above
            room = measured - limit.value if name == "tokens_per_s" else limit.value - measured
            met, by = room >= 0, round(room / limit.value, 4)
        lines.append(BudgetLine(name=name, limit=limit.value, why=limit.why, measured=measured, met=met, by=by))
    return tuple(lines)


def invalid_reasons(
    probe: Reading, target: Target, throttled: str | None = None, accelerator: AcceleratorResult | None = None
) -> tuple[str, ...]:
    """Why timings, memory, energy and budgets do not count; empty where they do. `throttled`: see `sensors.throttled`.

    An emulator, a device that slowed itself down, another architecture than the target's, or an accelerator that left
    the work to another.
    """
    found = []
    if probe.get("emulated") is True:
        found.append(f"emulated: {text(probe, 'emulated_why') or 'the probe does not say how it knows'}")
    if throttled:
        found.append(f"throttled: {throttled}")
    machine = text(probe, "machine")
    if machine and target.architecture not in ("any", {"arm64": "aarch64"}.get(machine, machine)):
        found.append(f"measured on {machine}, and target {target.name} is {target.architecture}")
    found += not_the_accelerator(accelerator)
    return tuple(found)


def cautions(
    probe: Reading, thermal: Thermal, drifts: Mapping[str, float] | None = None, n_other_pixels: int = 0
) -> tuple[str, ...]:
    """Warnings that do not invalidate timings.

    `probe`: the device before the job; `drifts`: metric -> `timing.drift`; `n_other_pixels`: answers for which the
    device decoded the image to other pixels than the host.
    """
    found = []
    load, cores = number(probe, "load_average", 0), count_cores(probe)
    if load is not None and cores is not None and load > BUSY_SHARE * cores:
        found.append(f"other programs were running: load average {load:.2f} on {cores} cores before the start")
    governors = {text(each, "governor") for each in items(probe, "frequencies")}
    if slow := [name for name in SLOW_GOVERNORS if name in governors]:
        found.append(f"the governor is {', '.join(slow)}: it may not have run at full speed")
    zone, limit_c = hottest(probe), thermal.start_below_c
    if zone is not None and limit_c is not None and zone[1] >= limit_c:
        found.append(f"it started at {zone[1]:.0f} C ({zone[0]}), above the target's limit of {limit_c:.0f} C")
    if (mode := text(probe, "power_mode")) in POWER_SAVERS:
        found.append(f"the power mode is {mode}")
    if kind := text(probe, "virtual"):
        found.append(f"it is a virtual machine ({kind}): other guests of its host may slow it down")
    if not isinstance(probe.get("emulated"), bool):
        found.append("whether it is emulated is not known")
    found += [f"{name} drifted by {share:+.0%} during the run" for name, share in (drifts or {}).items() if share]
    if n_other_pixels:
        found.append(f"in {n_other_pixels} answers the device decoded the image to other pixels than the host")
    return tuple(found)


def overall(accuracy: Word, timings_invalid: bool) -> BenchWord:
    """The verdict of the benchmark: a lost gain is worse than a timing that does not count.

    >>> overall("lost", True), overall("holds", True), overall("inconclusive", False)
    ('lost', 'invalid', 'inconclusive')
    """
    if accuracy == "lost":
        return "lost"
    return "invalid" if timings_invalid else accuracy
