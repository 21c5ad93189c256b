"""Lines of NVIDIA's tegrastats, JetPack 4 to 7.

Fields come and go with board, release and user (without root some boards show no EMC and no rails), so each field is
looked for on its own. What is not there is None or left out, never 0. Sources: NVIDIA's Tegrastats Utility pages
(Jetson Linux 32 to 38) and lines that people published; tests/bench/test_tegrastats.py quotes one of each kind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mpa_edge.bench.results.records import Unreadable

RAM = re.compile(r"\bRAM (\d{1,9})/(\d{1,9})MB")
SWAP = re.compile(r"\bSWAP (\d{1,9})/(\d{1,9})MB")
CPU = re.compile(r"\bCPU \[([^\]]*)\](?:@(\d{1,9}))?")
CORE = re.compile(r"(\d{1,9})%(?:@(\d{1,9}))?")
# 0% | 0%@76 | 0%@[305] | 0%@[0,0] | @[314,314,314] (Thor says no load)
GPU = re.compile(r"\bGR3D_FREQ (?:(\d{1,9})%)?(?:@\[?(\d{1,9}(?:,\d{1,9})*)\]?)?")
EMC = re.compile(r"\bEMC_FREQ (\d{1,9})%")
# the number behind the slash is a peak, on JetPack 7
TEMPERATURE = re.compile(r"\b([A-Za-z]\w*)@(-?\d{1,9}(?:\.\d{1,9})?)C\b")
# now | now/average | now/average/peak, with mW or, up to JetPack 4, without; AGX Xavier and TX name rails without VDD_
RAIL = re.compile(
    r"(?<!\S)((?:VDD|VIN|POM|SYS)\w*|GPU|CPU|SOC|CV) (-?\d{1,9})(?:(?:mW)?/-?\d+(?:mW)?(?:/-?\d+(?:mW)?)?|mW)(?!\S)"
)
# a sensor of a part that is switched off says -256 C
COLDEST_C = -100.0
TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
# boards without a rail of their sum: these are disjoint. VDDQ lies behind SYS_5V0 (AGX Orin), so it must not be added
SUMS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
)


@dataclass(frozen=True)
class Reading:
    """One line. None where the line does not say."""

    ram_used_mb: int
    """Of the memory that CPU and GPU share."""
    ram_total_mb: int
    """Of the same."""
    swap_used_mb: int | None = None
    """Swap and zram."""
    cpu_loads: tuple[int | None, ...] = ()
    """Percent, one a core; None: the core is off."""
    cpu_mhz: tuple[int | None, ...] = ()
    """Frequency, one a core."""
    gpu_load: int | None = None
    """Percent; Thor does not say."""
    gpu_mhz: tuple[int, ...] = ()
    """One a cluster."""
    emc_load: int | None = None
    """Percent of the memory's bandwidth; needs root on most boards."""
    temperatures_c: dict[str, float] = field(default_factory=dict)
    """Sensor in lower case -> degrees; switched off ones are left out."""
    rails_mw: dict[str, int] = field(default_factory=dict)
    """Rail -> power now. A calibration offset makes an idle rail negative."""


def parse(line: str) -> Reading | None:
    """A reading; None where the line is none (a torn line, an error message).

    >>> parse("RAM 1905/7620MB (lfb 36x4MB) CPU [7%@729,off] GR3D_FREQ 0% tj@46.1C CV0@-256C VDD_IN 4742mW/4742mW")
    Reading(ram_used_mb=1905, ram_total_mb=7620, swap_used_mb=None, cpu_loads=(7, None), cpu_mhz=(729, None),
            gpu_load=0, gpu_mhz=(), emc_load=None, temperatures_c={'tj': 46.1}, rails_mw={'VDD_IN': 4742})
    """
    ram = RAM.search(line)
    if not ram:
        return None
    swap, gpu, emc = SWAP.search(line), GPU.search(line), EMC.search(line)
    loads, frequencies = cores(line)
    return Reading(
        ram_used_mb=int(ram[1]),
        ram_total_mb=int(ram[2]),
        swap_used_mb=int(swap[1]) if swap else None,
        cpu_loads=loads,
        cpu_mhz=frequencies,
        gpu_load=int(gpu[1]) if gpu and gpu[1] else None,
        gpu_mhz=tuple(int(each) for each in gpu[2].split(",")) if gpu and gpu[2] else (),
        emc_load=int(emc[1]) if emc else None,
        temperatures_c={k.lower(): float(v) for k, v in TEMPERATURE.findall(line) if float(v) > COLDEST_C},
        rails_mw={name: int(now) for name, now in RAIL.findall(line)},
    )


def cores(line: str) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """Loads in percent and frequencies in MHz of all cores; None for one that is off.

    >>> cores("CPU [22%@518,off]"), cores("CPU [0%,5%]@2601"), cores("no such field")
    (((22, None), (518, None)), ((0, 5), (2601, 2601)), ((), ()))
    """
    found = CPU.search(line)
    if not found:
        return (), ()
    matches = [CORE.match(each.strip()) for each in found[1].split(",")]
    loads = tuple(int(core[1]) if core else None for core in matches)
    frequencies = tuple(int(core[2] or found[2] or 0) or None if core else None for core in matches)
    return loads, frequencies


def total_power_w(reading: Reading) -> tuple[float, str] | Unreadable:
    """Power of the module with the rails that make it up, or why there is none.

    VDD_IN (Orin Nano, Orin NX, Xavier NX, TX2), POM_5V_IN (Nano) and VIN (Thor) are totals. AGX Orin and AGX Xavier
    have none: their disjoint rails are added, all of them or none. Source: NVIDIA's developer guide, Software-Based
    Power Consumption Modeling; Thor's VIN_SYS_5V0 is a part of VIN.

    >>> total_power_w(Reading(1, 2, rails_mw={"VDD_GPU_SOC": 2340, "VDD_CPU_CV": 390, "VIN_SYS_5V0": 4025}))
    (6.755, 'VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0')
    """
    rails = reading.rails_mw
    for name in TOTALS:
        if rails.get(name, 0) > 0:
            return rails[name] / 1000, name
    for names in SUMS:
        if all(name in rails for name in names) and sum(rails[name] for name in names) > 0:
            return sum(rails[name] for name in names) / 1000, " + ".join(names)
    if not rails:
        return Unreadable(reason="tegrastats shows no power rail (most boards show them to root only)")
    return Unreadable(reason=f"no rule for the sum of the rails {', '.join(sorted(rails))}")
