"""Whether timings count, what to be careful with, and the one word of the whole benchmark."""

from __future__ import annotations

from collections.abc import Mapping

from mpa_edge.bench.results.probe import Probe, known
from mpa_edge.bench.results.records import BenchWord
from mpa_edge.bench.results.sensors import count_cores, hottest
from mpa_edge.config.target import Thermal
from mpa_edge.metrics.gain import Word

# a share of all cores that other programs may keep busy before it is said
BUSY_SHARE = 0.3
SLOW_GOVERNORS = ("powersave", "conservative")
SAVERS = ("battery saver", "low-power", "quiet", "cool")


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
    """What a reader should know though timings count. `probe`: before the job; `drifts`: metric -> `timing.drift`."""
    found = [busy(probe), slow_governor(probe), warm(probe, thermal), saver(probe), shared(probe), unsure(probe)]
    found += [
        f"{name} drifted by {share:+.0%} in the course of the run" for name, share in (drifts or {}).items() if share
    ]
    return tuple(each for each in found if each)


def busy(probe: Probe) -> str:
    """Other programs were at work.

    >>> busy(Probe(load_average=(1.5, 1.0, 1.0), affinity="0-1"))
    'other programs ran: load average 1.50 on 2 cores before it began'
    """
    load, cores = known(probe.load_average), count_cores(probe)
    if load is None or cores is None or load[0] <= BUSY_SHARE * cores:
        return ""
    return f"other programs ran: load average {load[0]:.2f} on {cores} cores before it began"


def slow_governor(probe: Probe) -> str:
    """The kernel holds frequencies down."""
    found = sorted({name for each in probe.frequencies if (name := known(each.governor)) in SLOW_GOVERNORS})
    return f"the governor is {', '.join(found)}: it may not have run at full speed" if found else ""


def warm(probe: Probe, thermal: Thermal) -> str:
    """It was not cool when it began."""
    found = hottest(probe)
    if thermal.start_below_c is None or found is None or found[1] < thermal.start_below_c:
        return ""
    return (
        f"it began at {found[1]:.0f} C ({found[0]}), above the {thermal.start_below_c:.0f} C that the target asks for"
    )


def saver(probe: Probe) -> str:
    """It saves power."""
    mode = known(probe.power_mode)
    return f"the power mode is {mode}" if mode in SAVERS else ""


def shared(probe: Probe) -> str:
    """A virtual machine."""
    kind = known(probe.virtual)
    return f"it is a virtual machine ({kind}): neighbours may slow it down" if kind else ""


def unsure(probe: Probe) -> str:
    """The probe could not tell whether an emulator is at work."""
    return "whether it is emulated is not known" if known(probe.emulated) is None else ""


def overall(accuracy: Word, timings_invalid: bool) -> BenchWord:
    """The word of the benchmark: a lost gain is worse than a timing that does not count.

    >>> overall("lost", True), overall("holds", True), overall("inconclusive", False)
    ('lost', 'invalid', 'inconclusive')
    """
    if accuracy == "lost":
        return "lost"
    return "invalid" if timings_invalid else accuracy
