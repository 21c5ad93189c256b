"""What the readings of a device mean: its environment, whether it was throttled, and the energy that it took."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from statistics import fmean, median
from typing import Any

from mpa_edge.bench.device.protocol import parse_cores
from mpa_edge.bench.results.probe import Reading, items, number, text
from mpa_edge.bench.results.records import EnergyResult, Environment
from mpa_edge.bench.results.tegrastats import parse_rails, total_power_w
from mpa_edge.config.target import Thermal
from mpa_edge.errors import MpaError

# instruction sets that change the speed, or the very result, of quantized arithmetic
X86 = (
    "sse4_2 avx avx2 f16c fma avx_vnni avx_vnni_int8 avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 "
    "amx_tile amx_int8 amx_bf16"
)
ARM = "asimd neon fphp asimdhp asimddp i8mm bf16 sve sve2 svei8mm svebf16 sme sme2 smei8i32"
FEATURES = frozenset(f"{X86} {ARM}".split())
# Linux, arch/arm64/include/asm/cputype.h; util-linux, sys-utils/lscpu-arm.c
CORES = (
    "0xd03 Cortex-A53, 0xd04 Cortex-A35, 0xd05 Cortex-A55, 0xd07 Cortex-A57, 0xd08 Cortex-A72, 0xd09 Cortex-A73, "
    "0xd0a Cortex-A75, 0xd0b Cortex-A76, 0xd0c Neoverse-N1, 0xd0d Cortex-A77, 0xd40 Neoverse-V1, 0xd41 Cortex-A78, "
    "0xd42 Cortex-A78AE, 0xd44 Cortex-X1, 0xd46 Cortex-A510, 0xd47 Cortex-A710, 0xd48 Cortex-X2, 0xd49 Neoverse-N2, "
    "0xd4d Cortex-A715, 0xd4e Cortex-X3, 0xd4f Neoverse-V2, 0xd80 Cortex-A520, 0xd81 Cortex-A720, 0xd82 Cortex-X4, "
    "0xd83 Neoverse-V3AE, 0xd84 Neoverse-V3, 0xd85 Cortex-X925, 0xd87 Cortex-A725"
)
ARM_CORES = dict(each.split(" ") for each in CORES.split(", "))
# zones of the processor; the others (battery, radio, a PMIC that always says 100 C) say nothing about its speed
PROCESSOR = re.compile(r"cpu|gpu|soc|^tj|core|pkg|package|big|little|mid|apc|cluster|k10temp|tctl", re.IGNORECASE)
OTHER = re.compile(r"pmic|board|batt|charg|skin|wlan|wifi|iwl|nvme|modem|usb|bcl|limit|acpitz", re.IGNORECASE)
BRAKES = re.compile(r"cpufreq|cpu-freq|^processor$|devfreq|throttle", re.IGNORECASE)
COLDEST_C, HOTTEST_C = 1.0, 150.0
# Raspberry Pi documentation, vcgencmd get_throttled: bits 0-3 now, the same + 16 since boot
PI_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
PI = re.compile(r"0x[0-9a-fA-F]{1,8}")
LEAST_READINGS = 3
# a phone that answers draws more; a smaller number is one in other units than the kernel's
LEAST_CURRENT_UA = 20_000


def cpu_name(probe: Reading) -> str:
    """Name of the processor, with the board's where the kernel has one; Arm's kernels give a number for each core.

    >>> cpu_name({"cpu_parts": "0x41/0xd05 0x41/0xd41"}), cpu_name({"cpu_parts": "0x51/0x001", "board": "Acme"})
    ('Cortex-A55 + Cortex-A78', 'Arm core 0x51/0x001 (Acme)')
    """
    parts, board = (text(probe, "cpu_parts") or "").split(), text(probe, "board")
    cores = " + ".join(ARM_CORES.get(each.partition("/")[2], f"Arm core {each}") for each in parts)
    name = cores or text(probe, "cpu") or "unknown"
    return f"{name} ({board})" if board and board not in name else name


def count_cores(probe: Reading) -> int | None:
    """Cores that a program may use."""
    affinity = text(probe, "affinity")
    with suppress(MpaError):
        return len(parse_cores(affinity or ""))
    cores = number(probe, "cores")
    return int(cores) if cores else None


def hottest(line: Reading) -> tuple[str, float] | None:
    """(zone, degrees) of the hottest part of the processor; None where there is none to read.

    On Android the hardware layer has its own zones. Dead zones say 0, or some thousand. Where no zone is known to be
    the processor's, those count that are not known to be something else.
    """
    zones = [*items(line, "thermal_zones"), *items(line, "thermal_service", "temperatures")]
    named = {text(z, "type") or "?": t for z in zones if (t := number(z, "temp_c")) and COLDEST_C < t < HOTTEST_C}
    rest = {name: temp_c for name, temp_c in named.items() if not OTHER.search(name)}
    chosen = {name: temp_c for name, temp_c in rest.items() if PROCESSOR.search(name)} or rest or named
    return max(chosen.items(), key=lambda item: item[1], default=None)


# what a report shows beside the environment's own fields
READINGS = (
    *("board", "kernel", "virtual", "emulated_why", "power_mode", "load_average", "memory_kib", "swaps"),
    *("frequencies", "throttling", "battery", "android", "l4t", "nvidia", "vulkan", "thermal_service", "python3"),
)


def environment(probe: Reading, loaded: Mapping[str, Any], transport: str) -> Environment:
    """What was used. `loaded`: values of a line `loaded` of the job, which names the runtime; `transport`: the link."""
    threads = loaded.get("threads")
    features = (text(probe, "cpu_features") or "").split()
    governors = sorted({name for each in items(probe, "frequencies") if (name := text(each, "governor"))})
    temperatures_c = {text(zone, "type") or "?": zone.get("temp_c") for zone in items(probe, "thermal_zones")}
    readings = {name: probe.get(name, {"value": None, "reason": "the probe does not say"}) for name in READINGS} | {
        "governor": ", ".join(governors) or {"value": None, "reason": "no cpufreq, or not allowed to read it"},
        "temperatures_c": temperatures_c or {"value": None, "reason": "no thermal zone"},
    }
    return Environment(
        machine=text(probe, "machine") or "unknown",
        cpu=cpu_name(probe),
        cpu_features=tuple(sorted(set(features) & FEATURES)),
        cores=count_cores(probe) or 1,
        os=text(probe, "os") or "unknown",
        runtime=str(loaded.get("runtime") or "unknown"),
        backend=str(loaded.get("backend") or "unknown"),
        threads=threads if isinstance(threads, int) else None,
        transport=transport,
        readings=readings,
    )


def throttled(before: Reading, watch: Sequence[Reading], thermal: Thermal) -> str | None:
    """Why timings do not count: the first sign that the device slowed itself down while it was watched; else None.

    `before`: the device when the job began. `watch`: lines since then, and the document after the job.
    """
    return next((sign for line in watch for sign in _signs(before, line, thermal)), None)


def _signs(before: Reading, line: Reading, thermal: Thermal) -> Iterator[str]:
    # Raspberry Pi: a bit that is set now, or has been set since `before`
    bits = [text(one, "throttling", "pi") or "" for one in (before, line)]
    was, now = (int(each, 16) if PI.fullmatch(each) else 0 for each in bits)
    new = now & 0xF | (now & ~was) >> 16 & 0xF
    if names := [name for bit, name in PI_BITS.items() if new >> bit & 1]:
        yield f"the Raspberry Pi reports: {', '.join(names)}"
    # x86: cores that were slowed down
    first, count = (number(one, "throttling", "counters") for one in (before, line))
    if first is not None and count is not None and count > first:
        yield f"the processor slowed down {count - first:.0f} times"
    # a cooling device that brakes the processor; fans may turn
    for device in items(line, "throttling", "cooling"):
        name, step = text(device, "type") or "", number(device, "now") or 0
        if BRAKES.search(name) and step > 0:
            yield f"the kernel brakes with {name}, step {step:.0f}"
    # Android's thermal service: 1, light throttling, is enough
    if status := number(line, "thermal_service", "status"):
        yield f"Android's thermal status is {status:.0f}"
    zone, limit_c = hottest(line), thermal.throttle_at_c
    if zone is not None and limit_c is not None and zone[1] >= limit_c:
        yield f"{zone[0]} at {zone[1]:.0f} C, and it slows down from {limit_c:.0f} C on"
    # the system allows a lower frequency than it did
    caps = {text(each, "name"): number(each, "allowed_khz") for each in items(before, "frequencies")}
    for policy in items(line, "frequencies"):
        cap, allowed = caps.get(text(policy, "name")), number(policy, "allowed_khz")
        if cap and allowed and allowed < cap:
            yield f"{text(policy, 'name')} capped at {allowed / 1000:.0f} of {cap / 1000:.0f} MHz"


def power_w(line: Reading) -> tuple[float, str] | str:
    """(watts, their source) at one moment, from the rails of a Jetson or a draining battery; or why there is none."""
    rails_mw = parse_rails(text(line, "tegrastats") or "")
    if rails_mw is not None:
        return total_power_w(rails_mw)
    battery = line.get("battery")
    if not isinstance(battery, dict) or "reason" in battery:
        return "no power rail and no battery to read"
    current, voltage = number(battery, "current_ua"), number(battery, "voltage_uv")
    status, plug = text(battery, "status"), text(battery, "plugged")
    if status != "Discharging" or plug:
        return f"the battery is not drained ({plug or status or 'status unknown'}): unplug it"
    if current is None or voltage is None:
        return "the battery does not say its current and voltage"
    if abs(current) < LEAST_CURRENT_UA:
        return f"a battery current of {current:.0f} uA is not plausible"
    return abs(current * 1e-6 * voltage * 1e-6), "battery current x voltage"


def energy_of(
    watch: Sequence[Reading], spans: Sequence[tuple[float, float]], tokens: int, began_uptime_s: float
) -> tuple[EnergyResult | None, str]:
    """Energy of a variant's answers, and how it was read or why it was not.

    `spans`: (from, to) of its answers, by the device's clock since boot; `tokens`: generated in all of them. Idle power
    is the median of the readings before `began_uptime_s`, when the first process began to load.

    >>> watch = [{"uptime_s": t, "tegrastats": f"RAM 1/2MB VDD_IN {mw}mW/1mW"} for t, mw in
    ...          ((1, 4000), (2, 4000), (5, 9000), (6, 9000), (7, 9000))]
    >>> energy_of(watch, [(4.0, 8.0)], 10, 3.0)[0].joules_per_token
    2.0
    """
    taken = [(time, power_w(line)) for line in watch if (time := number(line, "uptime_s")) is not None]
    powers = [(time, *power) for time, power in taken if not isinstance(power, str)]
    if not powers or tokens < 1 or not spans:
        reasons = [power for _, power in taken if isinstance(power, str)]
        return None, reasons[-1] if reasons else "nothing was read while it answered"
    sources = sorted({source for _, _, source in powers})
    if len(sources) > 1:
        return None, f"the source of the power changed ({', '.join(sources)})"
    busy = [watts for time, watts, _ in powers if any(start <= time <= end for start, end in spans)]
    before = [watts for time, watts, _ in powers if time < began_uptime_s]
    if len(busy) < LEAST_READINGS:
        return None, f"{len(busy)} readings while it answered are too few"
    if not before:
        return None, "no reading before it began, so idle power is not known"
    mean_w, idle_w = fmean(busy), median(before)
    if mean_w <= idle_w:
        return None, f"power did not rise while it answered ({mean_w:.2f} W, idle {idle_w:.2f} W)"
    joules = (mean_w - idle_w) * sum(end - start for start, end in spans)
    result = EnergyResult(
        joules_per_token=joules / tokens,
        mean_power_w=mean_w,
        idle_power_w=idle_w,
        source=sources[0],
        samples=len(busy),
    )
    return result, f"{sources[0]}, {len(busy)} readings, idle power subtracted"
