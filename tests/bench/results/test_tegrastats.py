"""Real lines, as people published them: one of each board and release."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_edge.bench.results.tegrastats import parse_rails, total_power_w

# public forum posts, issue threads and test data of DataDog/datadog-agent, NVIDIA's guides; core lists shortened
NANO_JP4 = (
    "RAM 1409/3964MB (lfb 28x4MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [22%@518,67%@518,off,off] "
    "EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@28.5C CPU@32C PMIC@50C GPU@30.5C AO@39.5C thermal@31.25C "
    "POM_5V_IN 2003/2003 POM_5V_GPU 0/0 POM_5V_CPU 320/320"
)
TX2_JP4 = (
    "RAM 2020/7852MB (lfb 1164x4MB) CPU [9%@345,21%@345,25%@345,3%@345,1%@345,1%@345] EMC_FREQ 0% GR3D_FREQ 0% "
    "PLL@42.5C MCPU@42.5C PMIC@100C Tboard@40C GPU@41C BCPU@42.5C thermal@41.9C Tdiode@41.25C VDD_SYS_GPU 153/158 "
    "VDD_SYS_SOC 536/547 VDD_4V0_WIFI 633/527 VDD_IN 3140/3208 VDD_SYS_CPU 536/590 VDD_SYS_DDR 557/601"
)
AGX_XAVIER_JP4 = (
    "RAM 1903/15692MB (lfb 3251x4MB) CPU [1%@1190,1%@1190,2%@1190,0%@1190] EMC_FREQ 0% GR3D_FREQ 0% AO@32.5C GPU@32C "
    "Tboard@32C Tdiode@34.75C AUX@31.5C CPU@33.5C thermal@32.9C PMIC@100C GPU 0/0 CPU 216/216 SOC 864/864 CV 0/0 "
    "VDDRQ 144/144 SYS5V 1889/1889"
)
XAVIER_NX_JP5 = (
    "07-09-2024 13:31:31 RAM 3168/6851MB (lfb 2x4MB) SWAP 161/3426MB (cached 0MB) CPU [23%@1397,17%@1192,16%@1190] "
    "EMC_FREQ 2%@204 GR3D_FREQ 0%@[114] VIC_FREQ 115 APE 150 AUX@45C CPU@46.5C thermal@45.6C AO@45C GPU@45.5C "
    "PMIC@50C VDD_IN 2763mW/2846mW VDD_CPU_GPU_CV 650mW/670mW VDD_SOC 650mW/711mW"
)
AGX_ORIN_JP5 = (
    "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,0%@729,off] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C Tboard@32C GPU@-256C tj@44.343C "
    "VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW"
)
AGX_ORIN_JP6_ROOT = (
    "RAM 29114/30697MB (lfb 3x4MB)    SWAP 4915/15348MB (cached 1MB) CPU [3%@729,100%@2201] EMC_FREQ 1%@2133 "
    "GR3D_FREQ 0%@[305,305] NVENC      off  NVDEC    off PVA0_FREQ off         APE           174        cpu@53.062C "
    "tj@53.062C    VDD_GPU_SOC 3205mW/3205mW VDD_CPU_CV 4405mW/4405mW VIN_SYS_5V0 4767mW/4767mW "
    "VDDQ_VDD2_1V8AO 504mW/504mW"
)
ORIN_NANO_JP6 = (
    "10-08-2026 04:38:21 RAM 1343/7620MB (lfb 157x4MB) SWAP 165/3810MB (cached 3MB) CPU [0%@1497,0%@729] "
    "EMC_FREQ 15%@204 GR3D_FREQ 0%@[305] NVDEC off NVJPG off VIC off OFA off APE 200 cpu@48.562C soc2@46.593C "
    "gpu@49.625C tj@49.312C VDD_IN 5251mW/8535mW VDD_CPU_GPU_CV 512mW/1944mW VDD_SOC 2720mW/3659mW"
)
ORIN_NANO_NO_ROOT = (
    "RAM 1905/7620MB (lfb 36x4MB) SWAP 320/12002MB (cached 20MB) CPU [0%@729,0%@729] GR3D_FREQ 0% cpu@46.125C "
    "tj@46.125C VDD_IN 4742mW/4742mW VDD_CPU_GPU_CV 482mW/482mW VDD_SOC 1446mW/1446mW"
)
ORIN_NANO_JP7 = (
    "RAM 2000/7620MB (lfb 1x4MB) CPU [72%@1728,75%@1728] GR3D_FREQ 33% cpu@50C/50C gpu@48.75C/48.75C tj@50C/50C "
    "VDD_IN 9761mW/9761mW/9761mW VDD_CPU_GPU_CV 4238mW/4238mW/4238mW VDD_SOC 1825mW/1825mW/1825mW"
)
AGX_ORIN_JP7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] EMC_FREQ 3%@3199 "
    "GR3D_FREQ 0%@[1300,1300] NVENC0 off NVDEC0 off APE 174 cpu@52.968C/52.968C VDD_GPU_SOC 3588mW/3588mW/3588mW "
    "VDD_CPU_CV 797mW/797mW/797mW VIN_SYS_5V0 5148mW/5148mW/5148mW"
)
THOR_JP7 = (
    "04-21-2026 15:50:52 RAM 105265/125772MB (lfb 34x4MB) CPU [0%@972,8%@972] EMC_FREQ 0%@2750 "
    "GR3D_FREQ @[314,314,314] NVENC0_FREQ @314 VIC off OFA_FREQ @315 PVA0_FREQ off APE 300 cpu@37.343C tj@38.875C "
    "soc012@37.468C gpu@38.875C soc345@37.406C VDD_GPU 1962mW/1962mW VDD_CPU_SOC_MSS 5887mW/5887mW "
    "VIN_SYS_5V0 5635mW/5635mW VIN 19780mW/19780mW"
)
THOR_IDLE = (
    "05-14-2026 21:36:35 RAM 26063/125772MB (lfb 35x4MB) CPU [2%@972] VDD_GPU -392mW/-392mW "
    "VDD_CPU_SOC_MSS 3924mW/3835mW VIN_SYS_5V0 5064mW/5055mW VIN 15004mW/15096mW"
)
THOR_CPU_TOGETHER = (
    "08-08-2026 20:58:23 RAM 3429/125749MB (lfb 120x4MB) CPU [0%,5%,off]@2601 EMC_FREQ @4266 "
    "GR3D_FREQ @[1574,1574,1574] cpu@49.75C/49.75C VDD_GPU 6330mW/6330mW/6330mW VIN 28906mW/14453mW/28906mW"
)
THREE = "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
XAVIER_SUM = "GPU + CPU + SOC + CV + VDDRQ + SYS5V"
GOLDEN = {
    NANO_JP4: (2.003, "POM_5V_IN"),
    TX2_JP4: (3.14, "VDD_IN"),
    AGX_XAVIER_JP4: (3.113, XAVIER_SUM),
    XAVIER_NX_JP5: (2.763, "VDD_IN"),
    AGX_ORIN_JP5: (6.755, THREE),
    AGX_ORIN_JP6_ROOT: (12.377, THREE),
    ORIN_NANO_JP6: (5.251, "VDD_IN"),
    ORIN_NANO_NO_ROOT: (4.742, "VDD_IN"),
    ORIN_NANO_JP7: (9.761, "VDD_IN"),
    AGX_ORIN_JP7: (9.533, THREE),
    THOR_JP7: (19.78, "VIN"),
    THOR_IDLE: (15.004, "VIN"),
    THOR_CPU_TOGETHER: (28.906, "VIN"),
}


def read(line: str) -> dict[str, int]:
    rails_mw = parse_rails(line)
    assert rails_mw is not None
    return rails_mw


@pytest.mark.parametrize(("line", "expected"), GOLDEN.items())
def test_golden(line: str, expected: tuple[float, str]) -> None:
    power = total_power_w(read(line))
    assert not isinstance(power, str)
    assert (pytest.approx(power[0]), power[1]) == expected


def test_power_is_the_value_now_not_the_average() -> None:
    assert read(ORIN_NANO_JP6) == {"VDD_IN": 5251, "VDD_CPU_GPU_CV": 512, "VDD_SOC": 2720}


def test_a_negative_rail_is_kept_and_the_total_is_not_touched() -> None:
    assert read(THOR_IDLE)["VDD_GPU"] == -392


def test_no_rail_or_unknown_rails_give_a_reason_and_no_number() -> None:
    bare = total_power_w(read("RAM 1/2MB CPU [1%@100]"))
    assert isinstance(bare, str)
    assert "root" in bare
    part = total_power_w(read("RAM 1/2MB VDD_GPU_SOC 3588mW/3588mW VDD_CPU_CV 797mW/797mW"))
    assert isinstance(part, str)
    assert part == "no rule for the sum of the rails VDD_CPU_CV, VDD_GPU_SOC"
    assert isinstance(total_power_w(read("RAM 1/2MB VDD_IN 0mW/0mW")), str)


@pytest.mark.parametrize("text", ["", "tegrastats: command not found", "RAM", "CPU [1%@100]", "RAM 1343/76"])
def test_no_line_of_it(text: str) -> None:
    assert parse_rails(text) is None


@given(st.text(max_size=300))
def test_never_raises_on_garbage(text: str) -> None:
    for line in (text, f"RAM 1/2MB {text}"):
        total_power_w(parse_rails(line) or {})


@given(st.sampled_from(list(GOLDEN)), st.data())
def test_never_raises_on_torn_lines(line: str, data: st.DataObject) -> None:
    start, end = (data.draw(st.integers(0, len(line))) for _ in range(2))
    torn = line[:start] + data.draw(st.text("0123456789%@[],/ mWC-x", max_size=30)) + line[end:]
    total_power_w(parse_rails(torn) or {})


@given(st.integers(5, 6000))
def test_absurd_numbers_do_not_raise(digits: int) -> None:
    many = "9" * digits
    parse_rails(f"RAM {many}/{many}MB VDD_IN {many}mW/{many}mW")
    parse_rails(f"RAM 1/2MB VDD_IN {many}mW/{many}mW")
