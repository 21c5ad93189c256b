"""Power from lines of NVIDIA's tegrastats, JetPack 4 to 7.

Rails come and go with board, release and user (without root some boards show none). Sources: NVIDIA's Tegrastats
Utility pages (Jetson Linux 32 to 38) and published lines; its test quotes one of each kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

RAM = re.compile(r"\bRAM \d{1,9}/\d{1,9}MB")
# now | now/average | now/average/peak, with mW or, up to JetPack 4, without; AGX Xavier and TX name rails without VDD_
RAIL = re.compile(
    r"(?<!\S)((?:VDD|VIN|POM|SYS)\w*|GPU|CPU|SOC|CV) (-?\d{1,9})(?:(?:mW)?/-?\d+(?:mW)?(?:/-?\d+(?:mW)?)?|mW)(?!\S)"
)
TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
# boards without a rail of their sum: these are disjoint. VDDQ lies behind SYS_5V0 (AGX Orin), so it must not be added
SUMS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
)


def parse_rails(line: str) -> dict[str, int] | None:
    """Rail -> milliwatts now; None where the line is not one of tegrastats (a torn line, an error message).

    A calibration offset makes an idle rail negative.

    >>> parse_rails("RAM 1905/7620MB (lfb 36x4MB) CPU [7%@729,off] GR3D_FREQ 0% tj@46.1C VDD_IN 4742mW/4800mW")
    {'VDD_IN': 4742}
    """
    return {name: int(now) for name, now in RAIL.findall(line)} if RAM.search(line) else None


def total_power_w(rails_mw: Mapping[str, int]) -> tuple[float, str] | str:
    """(power of the module in W, the rails that make it up), or the reason why there is none.

    VDD_IN (Orin Nano, Orin NX, Xavier NX, TX2), POM_5V_IN (Nano) and VIN (Thor) are totals. AGX Orin and AGX Xavier
    have none: their disjoint rails are added, all of them or none. Source: NVIDIA's developer guide, Software-Based
    Power Consumption Modeling; Thor's VIN_SYS_5V0 is a part of VIN.

    >>> total_power_w({"VDD_GPU_SOC": 2340, "VDD_CPU_CV": 390, "VIN_SYS_5V0": 4025})
    (6.755, 'VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0')
    """
    for name in TOTALS:
        if rails_mw.get(name, 0) > 0:
            return rails_mw[name] / 1000, name
    for names in SUMS:
        if all(name in rails_mw for name in names) and sum(rails_mw[name] for name in names) > 0:
            return sum(rails_mw[name] for name in names) / 1000, " + ".join(names)
    if not rails_mw:
        return "tegrastats shows no power rail (most boards show them to root only)"
    return f"no rule for the sum of the rails {', '.join(sorted(rails_mw))}"
