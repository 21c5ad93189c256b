"""What readings mean: environment, throttling, energy, validity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_edge.bench.results.probe import Reading, read_probe, read_watch
from mpa_edge.bench.results.sensors import (
    count_cores,
    cpu_name,
    energy_of,
    environment,
    hottest,
    power_w,
    throttled,
)
from mpa_edge.bench.results.validity import cautions, invalid_reasons
from mpa_edge.config.library import load_target
from mpa_edge.config.target import Thermal
from mpa_edge.errors import MpaError
from tests.bench import trees
from tests.bench.test_probe_sh import said

LIMITS = Thermal(start_below_c=50.0, throttle_at_c=80.0, cool_down_s=0)
FREE = Thermal(start_below_c=None, throttle_at_c=None, cool_down_s=0)
DENIED = {"value": None, "reason": "not allowed"}


def line(**values: Any) -> Reading:
    return values


def zones(**degrees: float) -> list[dict[str, Any]]:
    return [{"type": name.replace("_", "-"), "temp_c": value} for name, value in degrees.items()]


def of_tree(tree: trees.Tree, tmp_path: Path, **programs: str) -> Reading:
    first = trees.programs(tmp_path / "bin", **programs) if programs else None
    return read_probe(json.dumps(said(["dash"], trees.plant(tmp_path / "tree", tree), first)))


def test_environment_of_a_pi(tmp_path: Path) -> None:
    uname = "case $1 in -m) echo aarch64 ;; *) echo Linux ;; esac"
    loaded = {"runtime": "onnxruntime 1.31.0", "backend": "CPUExecutionProvider", "threads": 4}
    made = environment(of_tree(trees.PI, tmp_path, uname=uname), loaded, "ssh pi")
    assert (made.machine, made.cpu, made.cores) == ("aarch64", "Cortex-A76 (Raspberry Pi 5 Model B Rev 1.0)", 4)
    assert made.cpu_features == ("asimd", "asimddp", "asimdhp", "fphp")
    assert (made.runtime, made.backend, made.threads) == ("onnxruntime 1.31.0", "CPUExecutionProvider", 4)
    assert made.readings["governor"] == "ondemand"
    assert made.readings["temperatures_c"] == {"cpu-thermal": 48.35}
    assert made.readings["power_mode"]["value"] is None
    assert made.readings["power_mode"]["reason"]
    assert json.loads(made.model_dump_json()) == made.model_dump(mode="json")


def test_environment_of_a_device_that_says_nothing() -> None:
    made = environment({}, {}, "adb 123")
    assert (made.machine, made.cpu, made.runtime, made.threads) == ("unknown", "unknown", "unknown", None)
    assert made.readings["temperatures_c"]["value"] is None
    assert made.readings["battery"]["reason"] == "the probe does not say"


def test_names_of_cores() -> None:
    probe = {"cpu_parts": "0x41/0xd46 0x41/0xd4d 0x41/0xd4e"}
    assert cpu_name(probe) == "Cortex-A510 + Cortex-A715 + Cortex-X3"
    assert cpu_name({"cpu": "Intel(R) N100", "board": "Beelink EQ12"}) == "Intel(R) N100 (Beelink EQ12)"


@pytest.mark.parametrize(("text", "n"), [("0-3", 4), ("0", 1), ("0-1,4,6-7", 5), ("ff", 8), ("", 8)])
def test_cores_are_those_that_may_be_used(text: str, n: int) -> None:
    assert count_cores({"affinity": text, "cores": 8}) == n


KEYS = (
    *("machine", "os", "board", "cpu", "cpu_parts", "cpu_features", "affinity", "cores", "power_mode", "load_average"),
    *("emulated", "emulated_why", "virtual", "uptime_s", "thermal_zones", "type", "temp_c", "frequencies", "name"),
    *("governor", "allowed_khz", "throttling", "pi", "counters", "cooling", "now", "battery", "status", "current_ua"),
    *("voltage_uv", "plugged", "thermal_service", "temperatures", "tegrastats"),
)
PLAIN = st.none() | st.booleans() | st.floats() | st.text()
NAMES = st.sampled_from(KEYS) | st.text()


@settings(deadline=None, max_examples=40)
@given(st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner)))
def test_no_answer_of_a_device_raises(value: Any) -> None:
    watch = read_watch([json.dumps(dict.fromkeys(KEYS, value))])
    probe = watch[0]
    environment(probe, {}, "local")
    throttled(probe, watch, LIMITS)
    energy_of(watch, [(0.0, 1.0)], 1, 0.0)
    invalid_reasons(probe, load_target("cpu"))
    cautions(probe, LIMITS)


def test_no_probe_is_an_error_with_its_first_words() -> None:
    with pytest.raises(MpaError, match=r"printed no JSON \(sh: probe.sh: not found\): run"):
        read_probe("sh: probe.sh: not found\n")
    with pytest.raises(MpaError, match=r"\(nothing\)"):
        read_probe("")


def test_the_hottest_part_of_the_processor() -> None:
    found = line(
        thermal_zones=[*zones(cpu_thermal=61.0, PMIC=100.0, battery=70.0, gpu=0.0, soc=9999.0), {"temp_c": DENIED}]
    )
    assert hottest(found) == ("cpu-thermal", 61.0)
    assert hottest(line(thermal_zones=zones(x86_pkg_temp=40.0, acpitz=90.0))) == ("x86-pkg-temp", 40.0)
    assert hottest(line(thermal_zones=zones(acpitz=55.0))) == ("acpitz", 55.0)
    service = {"status": 0, "temperatures": zones(BIG=58.1, battery=60.0)}
    assert hottest(line(thermal_service=service)) == ("BIG", 58.1)
    assert hottest(line()) is None


# the Nano's tegrastats names: a fixed PMIC must not throttle a cool board
SIGNS: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [
    ({}, {}, None),
    ({"throttling": {"pi": "0x0"}}, {"throttling": {"pi": "0x4"}}, "throttled"),
    ({"throttling": {"pi": "0x0"}}, {"throttling": {"pi": "0x80000"}}, "soft temperature limit"),
    ({"throttling": {"pi": "0x80000"}}, {"throttling": {"pi": "0x80000"}}, None),
    ({"throttling": {"pi": "0x50000"}}, {"throttling": {"pi": "0x50001"}}, "under-voltage"),
    ({"throttling": {"counters": 7}}, {"throttling": {"counters": 7}}, None),
    ({"throttling": {"counters": 7}}, {"throttling": {"counters": 9}}, "slowed down 2 times"),
    ({"throttling": {"counters": DENIED}}, {"throttling": {"counters": 9}}, None),
    ({}, {"throttling": {"cooling": [{"type": "pwm-fan", "now": 4}, {"type": "intel_powerclamp", "now": -1}]}}, None),
    ({}, {"throttling": {"cooling": [{"type": "cpu-throttle-alert", "now": 1}]}}, "cpu-throttle-alert, step 1"),
    ({}, {"throttling": {"cooling": [{"type": "cpufreq-cpu0", "now": 2}]}}, "cpufreq-cpu0"),
    ({}, {"throttling": {"cooling": [{"type": "Processor", "now": 0}]}}, None),
    ({}, {"thermal_service": {"status": 0}}, None),
    ({}, {"thermal_service": {"status": 1}}, "thermal status is 1"),
    ({}, {"thermal_zones": zones(cpu=79.9, PMIC=100.0)}, None),
    ({}, {"thermal_zones": zones(cpu=80.0)}, "cpu at 80 C, and it slows down from 80 C on"),
    ({}, {"thermal_zones": [{"type": "cpu", "temp_c": DENIED}]}, None),
    (
        {"frequencies": [{"name": "policy0", "allowed_khz": 2400000}]},
        {"frequencies": [{"name": "policy0", "allowed_khz": 1500000}]},
        "policy0 capped at 1500 of 2400 MHz",
    ),
    (
        {"frequencies": [{"name": "policy0", "allowed_khz": 2400000}]},
        {"frequencies": [{"name": "policy0", "allowed_khz": 2400000}]},
        None,
    ),
]


@pytest.mark.parametrize(("before", "now", "said"), SIGNS)
def test_throttled(before: dict[str, Any], now: dict[str, Any], said: str | None) -> None:
    found = throttled(before, [line(), line(**now)], LIMITS)
    assert (found is None) == (said is None)
    assert said is None or said in str(found)


def test_without_a_limit_heat_is_no_reason() -> None:
    assert throttled({}, [line(thermal_zones=zones(cpu=99.0))], FREE) is None


def rails(at: float, mw: int) -> Reading:
    return line(uptime_s=at, tegrastats=f"RAM 1/2MB CPU [1%@100] VDD_IN {mw}mW/9mW")


def test_energy_of_a_rail() -> None:
    watch = [rails(1, 4000), rails(2, 4200), rails(3, 7000), *(rails(t, 9200) for t in range(5, 15)), rails(20, 4100)]
    found, how = energy_of(watch, [(4.5, 14.5)], 100, 2.5)
    assert found is not None
    assert (found.idle_power_w, found.mean_power_w, found.samples) == (pytest.approx(4.1), pytest.approx(9.2), 10)
    assert found.joules_per_token == pytest.approx(5.1 * 10 / 100)
    assert (found.source, how) == ("VDD_IN", "VDD_IN, 10 readings, idle power subtracted")


def test_energy_of_several_stretches_leaves_out_what_lies_between() -> None:
    watch = [rails(1, 4000), *(rails(t, 6000) for t in (3, 4)), *(rails(t, 9999) for t in (6, 7)), rails(9, 6000)]
    found, _ = energy_of(watch, [(2.5, 4.5), (8.5, 9.5)], 30, 2.5)
    assert found is not None
    assert found.joules_per_token == pytest.approx(2.0 * 3.0 / 30)


def drained(at: float, current_ua: object, status: str = "Discharging", **more: object) -> Reading:
    return line(uptime_s=at, battery={"status": status, "current_ua": current_ua, "voltage_uv": 4_000_000, **more})


@pytest.mark.parametrize("sign", [1, -1])
def test_energy_of_a_battery(sign: int) -> None:
    watch = [drained(1, sign * 250_000), *(drained(t, sign * 1_000_000) for t in range(3, 8))]
    found, _ = energy_of(watch, [(2.5, 7.5)], 10, 2.5)
    assert found is not None
    assert (found.mean_power_w, found.idle_power_w) == (pytest.approx(4.0), pytest.approx(1.0))
    assert found.joules_per_token == pytest.approx(3.0 * 5 / 10)
    assert found.source == "battery current x voltage"


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        (drained(1, 900_000, "Charging"), "not drained (Charging)"),
        (drained(1, 900_000, plugged="USB"), "not drained (USB)"),
        (drained(1, DENIED), "does not say"),
        (drained(1, 900), "not plausible"),
        (line(uptime_s=1, tegrastats="RAM 1/2MB"), "no power rail"),
        (line(uptime_s=1), "no power rail and no battery"),
    ],
)
def test_power_that_cannot_be_read_has_a_reason(reading: Reading, said: str) -> None:
    found = power_w(reading)
    assert isinstance(found, str)
    assert energy_of([reading] * 9, [(0.0, 2.0)], 5, 0.0)[0] is None
    assert said in energy_of([reading] * 9, [(0.0, 2.0)], 5, 0.0)[1]


@pytest.mark.parametrize(
    ("watch", "tokens", "said"),
    [
        ([], 5, "nothing was read"),
        ([rails(t, 5000) for t in range(9)], 0, "nothing was read"),
        ([rails(1, 4000), rails(5, 5000), rails(6, 5000)], 5, "2 readings while it answered are too few"),
        ([rails(t, 5000) for t in range(5, 9)], 5, "no reading before"),
        ([rails(t, 5000) for t in range(1, 9)], 5, "did not rise"),
        ([rails(1, 4000), *(drained(t, 900_000) for t in range(5, 9))], 5, "the source of the power changed"),
    ],
)
def test_no_energy_without_enough_readings(watch: list[Reading], tokens: int, said: str) -> None:
    found, reason = energy_of(watch, [(4.5, 9.0)], tokens, 4.5)
    assert found is None
    assert said in reason
