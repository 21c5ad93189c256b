"""Leaks and throttling in series that were made with or without them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_edge.bench.device.protocol import JobOrder, Line, Step, to_line
from mpa_edge.bench.report import soak as words
from mpa_edge.bench.report.table import render_soak
from mpa_edge.bench.results.lines import checked_lines
from mpa_edge.bench.results.soak import MOST_POINTS, Soak, figures_of, memory_trend, speed_trend
from mpa_edge.config.target import Thermal
from tests.bench import made_up

FREE = Thermal(start_below_c=None, throttle_at_c=None, cool_down_s=0)
HALF_AN_HOUR = np.arange(1.0, 1801.0)
MB = 1e6


def noise(seed: int, n: int = 1800) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 1.0, n)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_leak_is_seen_through_noise(seed: int) -> None:
    # 400 MB a day: 8 MB in half an hour, below noise of 2 MB from one sample to the next
    rss = 500 * MB + 400 * MB / 86_400 * HALF_AN_HOUR + 2 * MB * noise(seed)
    found = memory_trend(HALF_AN_HOUR, rss)
    assert found.verdict == "leaks"
    assert found.bytes_per_day == pytest.approx(400 * MB, rel=0.3)
    assert found.ci95[0] < 400 * MB < found.ci95[1]  # type: ignore[index]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["flat", "cache", "step", "spikes", "sinks", "saw"])
def test_what_grows_once_is_no_leak(kind: str, seed: int) -> None:
    t, made = HALF_AN_HOUR, 500 * MB + MB * noise(seed)
    made = (
        made
        + {
            "flat": 0.0,
            "cache": 80 * MB * (1 - np.exp(-t / 120)),
            "step": 60 * MB * (t > 700),
            "spikes": 90 * MB * (noise(seed + 9) > 2),
            "sinks": -40 * MB * t / 1800,
            "saw": 30 * MB * (t % 300) / 300,
        }[kind]
    )
    assert memory_trend(t, made).verdict == "steady"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_noise_alone_is_no_leak(seed: int) -> None:
    assert memory_trend(HALF_AN_HOUR, 500 * MB + 5 * MB * noise(seed)).verdict == "steady"


def test_a_leak_in_seconds() -> None:
    t = np.arange(0.1, 10.1, 0.1)
    assert memory_trend(t, 100 * MB + 3 * MB * t).verdict == "leaks"
    assert memory_trend(t[:15], 100 * MB + 3 * MB * t[:15]).verdict == "too short"
    assert memory_trend([], []).verdict == "too short"


# --- speed ------------------------------------------------------------------------------------------------------------


def tokens(share: float, seed: int = 0) -> np.ndarray:
    """20 tokens/s with noise, and from the middle on a share of that."""
    return (20.0 + noise(seed)) * np.where(HALF_AN_HOUR > 900, share, 1.0)


ONES = np.ones(1800)


def test_a_slow_end_with_lower_clocks_is_throttling() -> None:
    clock, hot = np.where(HALF_AN_HOUR > 900, 1500.0, 2400.0), np.where(HALF_AN_HOUR > 900, 85.0, 60.0)
    found = speed_trend(HALF_AN_HOUR, ONES, tokens(0.7), None, hot, clock)
    assert found.verdict == "throttled"
    assert found.first == pytest.approx(20, rel=0.02)
    assert found.last == pytest.approx(14, rel=0.02)
    assert found.ci95[0] < -0.3 < found.ci95[1] < -0.25  # type: ignore[index]
    assert "2,400 to 1,500 MHz; 60 to 85 C" in found.why


def test_without_a_reason_it_is_only_slower() -> None:
    found = speed_trend(HALF_AN_HOUR, ONES, tokens(0.7))
    assert (found.verdict, "no sensor says why" in found.why) == ("slower", True)
    signed = speed_trend(HALF_AN_HOUR, ONES, tokens(0.7), "the kernel brakes with cpufreq, step 3")
    assert (signed.verdict, "cpufreq, step 3" in signed.why) == ("throttled", True)


@pytest.mark.parametrize("share", [1.0, 0.97, 1.3])
def test_a_steady_or_faster_end_is_steady(share: float) -> None:
    # lower clocks alone change nothing: decoding may wait for memory
    found = speed_trend(HALF_AN_HOUR, ONES, tokens(share), "cpufreq", None, np.linspace(2400, 1500, 1800))
    assert found.verdict == "steady"


def test_a_slow_warm_up_is_left_out() -> None:
    slow = np.where(HALF_AN_HOUR < 50, 5.0, 20.0)
    assert speed_trend(HALF_AN_HOUR, ONES, slow + 0.1 * noise(1)).first == pytest.approx(20, rel=0.01)
    fast = np.where(HALF_AN_HOUR < 50, 60.0, 20.0)
    assert speed_trend(HALF_AN_HOUR, ONES, fast + 0.1 * noise(1)).verdict == "steady"
    assert speed_trend(HALF_AN_HOUR[:10], ONES[:10], fast[:10]).verdict == "too short"
    assert speed_trend([], [], []).verdict == "too short"


# --- the document -----------------------------------------------------------------------------------------------------


def sample(i: int, block: int = 0, **changed: object) -> Line:
    values = {"uptime_s": 100.0 + i, "seconds": 1.0, "tokens": 20, "latencies_s": [0.4, 0.6], "rss_bytes": 10**8 + i}
    return Line("sample", "artifact", block, values | changed)


def watched(i: int) -> dict[str, object]:
    late = i > 200
    zones, cores = [{"type": "cpu", "temp_c": 80.0 if late else 50.0}], [{"now_khz": 1_500_000 if late else 2_000_000}]
    return {"uptime_s": 100.0 + i, "thermal_zones": zones, "frequencies": cores}


def soak(lines: list[Line], watch: list[dict[str, object]]) -> Soak:
    figures = figures_of(lines, {}, watch, FREE)
    assert figures
    given = {"run": "mine", "scheme": "onnx-int8", "target": "cpu", "created": "2026-12-01", "concurrency": 1}
    return Soak(**given, environment=made_up.environment(False), asked_s=400, cautions=(), **figures)  # type: ignore[arg-type]


def test_samples_and_readings_become_a_document() -> None:
    lines = [sample(i, tokens=20 if i < 200 else 10) for i in range(400)]
    made = soak(lines, [watched(i) for i in range(0, 400, 5)])
    assert (made.seconds, made.answers, made.processes, made.changed) == (400, 800, 1, 0)
    assert made.tokens_per_s == pytest.approx(15)
    assert made.latency_s.p50 == pytest.approx(0.5)
    assert (made.memory.verdict, made.speed.verdict) == ("steady", "throttled")
    assert len(made.points) == MOST_POINTS
    assert (made.points[0].temperature_c, made.points[-1].clock_mhz) == (50.0, 1500.0)
    curves = {curve.name: curve for curve in words.curves(made)}
    assert list(curves) == ["speed", "memory", "temperature", "clock"]
    assert (curves["temperature"].first, curves["temperature"].last) == (50.0, 80.0)
    table = render_soak(made, 80)
    assert "speed falls, the device throttles" in " ".join(table.split())
    assert max(map(len, table.splitlines())) <= 80
    # sensors that nothing can be read from are no curves
    bare = soak([sample(i, rss_bytes=None) for i in range(40)], [])
    assert [curve.name for curve in words.curves(bare)] == ["speed"]
    assert bare.memory.verdict == "too short"
    assert figures_of([], {}, [], FREE) is None


def test_a_process_that_was_replaced_does_not_hide_the_leak_of_the_other() -> None:
    lines = [sample(i, rss_bytes=int(1e8 + 1e5 * i)) for i in range(300)]
    lines += [sample(300 + i, 1, rss_bytes=10**8, changed=int(i == 5)) for i in range(100)]
    made = soak(lines, [])
    assert (made.processes, made.memory.verdict, made.changed) == (2, "leaks", 1)
    shown = dict(words.shown_rows(made))
    assert shown["processes that died"] == "1"
    assert shown["answers that changed"].startswith("1 of 800")


def test_only_samples_of_a_soak_count(tmp_path) -> None:
    steps = (Step("artifact", "q"),)
    order = JobOrder({"artifact": "models/artifact"}, steps, soak_s=60.0)
    wrong = [sample(3, seconds=-1.0), sample(4, latencies_s=[]), sample(5, tokens="many"), sample(1)]
    out = tmp_path / "out.jsonl"
    out.write_text("".join(map(to_line, [sample(1), sample(2), *wrong])))
    found = checked_lines(out, order)
    assert [line.values["uptime_s"] for line in found.lines] == [101.0, 102.0]
    assert len(found.cautions) == 2
    assert checked_lines(out, JobOrder(order.variants, steps)).lines == ()
