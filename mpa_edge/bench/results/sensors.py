"""What the readings of a device mean: its environment, whether it was slowed down, and the energy that it took."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from mpa_edge.bench.results.probe import Cooling, Policy, Probe, WatchLine, Zone, known
from mpa_edge.bench.results.probe import read_probe as read_probe
from mpa_edge.bench.results.probe import read_watch as read_watch
from mpa_edge.bench.results.records import EnergyResult, Environment, Unreadable
from mpa_edge.bench.results.tegrastats import Reading, parse, total_power_w
from mpa_edge.config.target import Thermal

# instruction sets that change the speed, or the very result, of quantized arithmetic
X86 = (
    "sse4_2 avx avx2 f16c fma avx_vnni avx_vnni_int8 avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 "
    "amx_tile amx_int8 amx_bf16"
)
ARM = "asimd neon fphp asimdhp asimddp i8mm bf16 sve sve2 svei8mm svebf16 sme sme2 smei8i32"
FEATURES = frozenset(f"{X86} {ARM}".split())
# Linux, arch/arm64/include/asm/cputype.h; util-linux, sys-utils/lscpu-arm.c
ARM_CORES = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2",
    "0xd49": "Neoverse-N2",
    "0xd4d": "Cortex-A715",
    "0xd4e": "Cortex-X3",
    "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520",
    "0xd81": "Cortex-A720",
    "0xd82": "Cortex-X4",
    "0xd83": "Neoverse-V3AE",
    "0xd84": "Neoverse-V3",
    "0xd85": "Cortex-X925",
    "0xd87": "Cortex-A725",
}
# zones of the processor; the others (battery, radio, PMIC that always says 100 C) say nothing about its speed
PROCESSOR = re.compile(r"cpu|gpu|soc|^tj|core|pkg|package|big|little|mid|apc|cluster|k10temp|tctl", re.IGNORECASE)
OTHER = re.compile(r"pmic|board|batt|charg|skin|wlan|wifi|iwl|nvme|modem|usb|bcl|limit|acpitz", re.IGNORECASE)
BRAKES = re.compile(r"cpufreq|cpu-freq|^processor$|devfreq|throttle", re.IGNORECASE)
COLDEST_C, HOTTEST_C = 1.0, 150.0
# Raspberry Pi documentation, vcgencmd get_throttled: bits 0-3 now, the same + 16 since boot
PI_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
LEAST_READINGS = 3
# a phone that answers draws more; a smaller number is one in other units than the kernel's
LEAST_CURRENT_UA = 20_000


def core_names(parts: str) -> str:
    """Names of Arm's cores.

    >>> core_names("0x41/0xd05 0x41/0xd41"), core_names("0x51/0x001")
    ('Cortex-A55 + Cortex-A78', 'Arm core 0x51/0x001')
    """
    return " + ".join(ARM_CORES.get(each.partition("/")[2], f"Arm core {each}") for each in parts.split())


def cpu_name(probe: Probe) -> str:
    """Name of the processor, with the board's where the kernel has one."""
    parts = known(probe.cpu_parts)
    name = core_names(parts) if parts else known(probe.cpu) or "unknown"
    board = known(probe.board)
    return f"{name} ({board})" if board and board not in name else name


def count_cores(probe: Probe) -> int | None:
    """Cores that a program may use."""
    affinity = known(probe.affinity)
    if affinity and re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", affinity):
        ends = [each.partition("-")[::2] for each in affinity.split(",")]
        return sum(int(last or first) - int(first) + 1 for first, last in ends)
    cores = known(probe.cores)
    return int(cores) if cores else None


def is_plausible(zone: Zone) -> bool:
    """Whether a zone's number is a temperature: dead zones say 0, or some thousand."""
    temp_c = known(zone.temp_c)
    return temp_c is not None and COLDEST_C < temp_c < HOTTEST_C


def processor_zones(line: WatchLine) -> dict[str, float]:
    """Temperatures that say how the processor fares; on Android those of the hardware layer."""
    service = known(line.thermal_service)
    zones = [zone for zone in (*line.thermal_zones, *(service.temperatures if service else ())) if is_plausible(zone)]
    named = {str(known(zone.type) or "?"): float(known(zone.temp_c) or 0) for zone in zones}
    rest = {name: value for name, value in named.items() if not OTHER.search(name)}
    return {name: value for name, value in rest.items() if PROCESSOR.search(name)} or rest or named


def hottest(line: WatchLine) -> tuple[str, float] | None:
    """Zone and temperature of the hottest part of the processor; None where there is none to read."""
    zones = processor_zones(line)
    name = max(zones, key=lambda each: zones[each], default=None)
    return None if name is None else (name, zones[name])


def hottest_c(line: WatchLine) -> float | None:
    """Temperature of the hottest part of the processor; None where there is none to read."""
    found = hottest(line)
    return found[1] if found else None


def plain(value: object) -> Any:
    """A value as JSON takes it."""
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def readings(probe: Probe) -> dict[str, Any]:
    """What a report shows beside the environment's own fields."""
    zones = {str(known(zone.type) or "?"): plain(zone.temp_c) for zone in probe.thermal_zones}
    governors = sorted({str(known(each.governor)) for each in probe.frequencies if known(each.governor)})
    said = {
        "board": probe.board,
        "kernel": probe.kernel,
        "virtual": probe.virtual,
        "emulated_why": probe.emulated_why,
        "power_mode": probe.power_mode,
        "load_average": probe.load_average,
        "memory_kib": probe.memory_kib,
        "swaps": probe.swaps,
        "frequencies": probe.frequencies,
        "throttling": probe.throttling,
        "battery": probe.battery,
        "android": probe.android,
        "thermal_service": probe.thermal_service,
        "python3": probe.python3,
        "governor": ", ".join(governors) or Unreadable(reason="no cpufreq, or not allowed to read it"),
        "temperatures_c": zones or Unreadable(reason="no thermal zone"),
    }
    return {name: plain(value) for name, value in said.items()}


def environment(probe: Probe, loaded: Mapping[str, Any], transport: str) -> Environment:
    """What was used. `loaded`: values of a line `loaded` of the job, which tells the runtime."""
    threads = loaded.get("threads")
    features = (known(probe.cpu_features) or "").split()
    return Environment(
        machine=known(probe.machine) or "unknown",
        cpu=cpu_name(probe),
        cpu_features=tuple(sorted(set(features) & FEATURES)),
        cores=count_cores(probe) or 1,
        os=known(probe.os) or "unknown",
        runtime=str(loaded.get("runtime") or "unknown"),
        backend=str(loaded.get("backend") or "unknown"),
        threads=threads if isinstance(threads, int) else None,
        transport=transport,
        readings=readings(probe),
    )


def throttled(before: Probe, watch: Sequence[WatchLine], thermal: Thermal) -> str | None:
    """Why timings do not count: the first sign that the device slowed itself down while it was watched; else None.

    `watch`: lines since the job began; a second Probe, taken after it, counts as one.
    """
    for line in watch:
        for reason in (
            pi_reason(before, line),
            counter_reason(before, line),
            brake_reason(line.throttling.cooling),
            status_reason(line),
            heat_reason(line, thermal.throttle_at_c),
            cap_reason(before.frequencies, line.frequencies),
        ):
            if reason:
                return reason
    return None


def pi_bits(line: WatchLine) -> int:
    """Bits of a Raspberry Pi; 0 where there are none."""
    text = known(line.throttling.pi) or "0x0"
    return int(text, 16) if re.fullmatch(r"0x[0-9a-fA-F]{1,8}", text) else 0


def pi_reason(before: WatchLine, line: WatchLine) -> str | None:
    """A bit that is set now, or has been set since `before`.

    >>> was, now = (WatchLine.model_validate({"throttling": {"pi": bits}}) for bits in ("0x50000", "0xd0000"))
    >>> pi_reason(was, was), pi_reason(was, now)
    (None, 'the Raspberry Pi says: soft temperature limit')
    """
    new = pi_bits(line) & 0xF | (pi_bits(line) & ~pi_bits(before)) >> 16 & 0xF
    names = [name for bit, name in PI_BITS.items() if new >> bit & 1]
    return f"the Raspberry Pi says: {', '.join(names)}" if names else None


def counter_reason(before: WatchLine, line: WatchLine) -> str | None:
    """x86 cores that were slowed down since `before`."""
    was, now = known(before.throttling.counters), known(line.throttling.counters)
    return (
        f"the processor slowed down {now - was:.0f} times"
        if was is not None and now is not None and now > was
        else None
    )


def brake_reason(devices: Iterable[Cooling]) -> str | None:
    """A cooling device that brakes the processor; fans may turn."""
    for each in devices:
        if BRAKES.search(known(each.type) or "") and (known(each.now) or 0) > 0:
            return f"the kernel brakes with {known(each.type)}, step {known(each.now):.0f}"
    return None


def status_reason(line: WatchLine) -> str | None:
    """Android's thermal service: 1, light throttling, is enough."""
    service = known(line.thermal_service)
    status = known(service.status) if service else None
    return f"Android's thermal status is {status:.0f}" if status else None


def heat_reason(line: WatchLine, limit_c: float | None) -> str | None:
    """Hotter than where the device slows down by itself."""
    found = hottest(line)
    if limit_c is None or found is None or found[1] < limit_c:
        return None
    return f"{found[0]} at {found[1]:.0f} C, and it slows down from {limit_c:.0f} C on"


def cap_reason(before: Iterable[Policy], now: Iterable[Policy]) -> str | None:
    """The system allows less than it did."""
    was = {known(each.name): known(each.allowed_khz) for each in before}
    for each in now:
        first, allowed = was.get(known(each.name)), known(each.allowed_khz)
        if first and allowed and allowed < first:
            return f"{known(each.name)} capped at {allowed / 1000:.0f} of {first / 1000:.0f} MHz"
    return None


def power_w(line: WatchLine) -> tuple[float, str] | Unreadable:
    """Power at one moment with its source: rails of a Jetson, else a battery that is being drained."""
    text = known(line.tegrastats)
    reading: Reading | None = parse(text) if text else None
    if reading:
        return total_power_w(reading)
    battery = known(line.battery)
    if battery is None:
        return Unreadable(reason="no power rail and no battery to read")
    current, voltage = known(battery.current_ua), known(battery.voltage_uv)
    status, plug = known(battery.status), known(battery.plugged)
    if status != "Discharging" or plug:
        return Unreadable(reason=f"the battery is not drained ({plug or status or 'status unknown'}): unplug it")
    if current is None or voltage is None:
        return Unreadable(reason="the battery does not say its current and voltage")
    if abs(current) < LEAST_CURRENT_UA:
        return Unreadable(reason=f"a battery current of {current:.0f} uA is not plausible")
    return abs(current * 1e-6 * voltage * 1e-6), "battery current x voltage"


def energy(
    watch: Sequence[WatchLine],
    t0_uptime_s: float,
    t1_uptime_s: float,
    tokens: int,
    *,
    began_uptime_s: float | None = None,
) -> tuple[EnergyResult | None, str]:
    """Energy of one stretch of answers, and how it was read or why it was not. Times by the device's clock since boot.

    Idle power is the median of the readings before `began_uptime_s`, when the first process began to load; without it
    the lowest reading before t0, as a load may lie between.
    """
    return energy_of(watch, [(t0_uptime_s, t1_uptime_s)], tokens, began_uptime_s=began_uptime_s)


def energy_of(
    watch: Sequence[WatchLine],
    spans: Sequence[tuple[float, float]],
    tokens: int,
    *,
    began_uptime_s: float | None = None,
) -> tuple[EnergyResult | None, str]:
    """As `energy`, over several stretches (from, to) of one variant; `tokens` generated in all of them."""
    taken = [(time, power_w(line)) for line in watch if (time := known(line.uptime_s)) is not None]
    readable = [(time, power) for time, power in taken if not isinstance(power, Unreadable)]
    if not readable or tokens < 1 or not spans:
        said = [power.reason for _, power in taken if isinstance(power, Unreadable)]
        return None, said[-1] if said else "nothing was read while it answered"
    sources = {power[1] for _, power in readable}
    if len(sources) > 1:
        return None, f"the source of the power changed ({', '.join(sorted(sources))})"
    return settle([(time, power[0]) for time, power in readable], spans, tokens, began_uptime_s, sources.pop())


def settle(
    powers_w: Sequence[tuple[float, float]],
    spans: Sequence[tuple[float, float]],
    tokens: int,
    began_uptime_s: float | None,
    source: str,
) -> tuple[EnergyResult | None, str]:
    """Arithmetic of `energy_of`: (uptime_s, power_w) readings of one source.

    >>> settle([(1, 4.0), (2, 4.0), (5, 9.0), (6, 9.0), (7, 9.0)], [(4.0, 8.0)], 10, 3.0, "VDD_IN")[0].joules_per_token
    2.0
    """
    busy = [power for time, power in powers_w if any(start <= time <= end for start, end in spans)]
    first = min(start for start, _ in spans) if began_uptime_s is None else began_uptime_s
    before = [power for time, power in powers_w if time < first]
    if len(busy) < LEAST_READINGS:
        return None, f"{len(busy)} readings while it answered are too few"
    if not before:
        return None, "no reading before it began, so idle power is not known"
    mean_w, idle_w = fmean(busy), min(before) if began_uptime_s is None else median(before)
    if mean_w <= idle_w:
        return None, f"power did not rise while it answered ({mean_w:.2f} W, idle {idle_w:.2f} W)"
    joules = (mean_w - idle_w) * sum(end - start for start, end in spans)
    return EnergyResult(
        joules_per_token=joules / tokens, mean_power_w=mean_w, idle_power_w=idle_w, source=source, samples=len(busy)
    ), f"{source}, {len(busy)} readings, idle power taken off"
