"""Regressions beyond noise are found, and noise is not taken for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpa_edge.bench.report.compare import Change, compare, compare_all, differences
from mpa_edge.bench.report.read import BenchData, read_bench
from mpa_edge.bench.results.records import BenchReport, Figure
from tests.bench import made_up

RIGHT = (0.58, 0.71, 0.70)
Make = Callable[..., BenchData]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(**changes: object) -> BenchData:
        return read_bench(made_up.write(tmp_path / str(len(list(tmp_path.iterdir()))), **changes))

    return made


def outcomes(changes: list[Change]) -> dict[str, str]:
    return {change.name: change.outcome for change in changes}


def changed(data: BenchData, **values: object) -> BenchData:
    report: BenchReport = data.report.model_copy(update=values)
    return replace(data, report=report)


def with_ttft(data: BenchData, p50: float | None, ci95: tuple[float, float] | None) -> BenchData:
    figure = Figure(unit="s", n=40, p50=p50, p90=p50, p99=p50, ci95=ci95)
    return changed(data, latency=data.report.latency | {"ttft_s": figure})


def test_the_same_benchmark_has_not_changed(holds: BenchData) -> None:
    assert set(outcomes(compare(holds, holds)).values()) == {"no clear change"}


def test_slower_and_faster_are_told_apart(make: Make) -> None:
    usual, slow = make(), make(slower=1.2)
    found = outcomes(compare(usual, slow))
    timed = ("ttft_s", "vision_encode_s", "prefill_s", "tokens_per_s", "total_s")
    assert {found[name] for name in timed} == {"regression"}
    back = outcomes(compare(slow, usual))
    assert {back[name] for name in timed} == {"improvement"}
    assert found["accuracy"] == back["accuracy"] == "no clear change"


@pytest.mark.parametrize(
    ("p50", "ci95", "outcome"),
    [
        (1.04, (1.03, 1.05), "no clear change"),  # apart, but within 5 %
        (1.2, (0.99, 1.4), "no clear change"),  # more than 5 %, but the intervals overlap
        (1.2, None, "no clear change"),  # measured once
        (1.2, (1.15, 1.25), "regression"),
        (0.8, (0.75, 0.85), "improvement"),
    ],
)
def test_both_conditions_count(holds: BenchData, p50: float, ci95: tuple[float, float] | None, outcome: str) -> None:
    before = with_ttft(holds, 1.0, (0.98, 1.02))
    assert outcomes(compare(before, with_ttft(holds, p50, ci95)))["ttft_s"] == outcome


def test_what_was_not_measured_is_left_out(holds: BenchData) -> None:
    assert "ttft_s" not in outcomes(compare(holds, with_ttft(holds, None, None)))


def test_invalid_timings_are_not_compared_and_that_is_said(make: Make) -> None:
    usual, emulated = make(), make(emulated=True, slower=3.0)
    for pair in ((usual, emulated), (emulated, usual)):
        changes = {change.name: change for change in compare(*pair)}
        assert changes["ttft_s"].outcome == "not compared"
        assert "emulated" in changes["ttft_s"].why
        assert changes["peak_bytes"].outcome == "not compared"
        assert changes["accuracy"].outcome == "no clear change"


def test_throttling_takes_the_timings_but_not_the_memory(make: Make) -> None:
    hot = changed(make(slower=2.0, peak=600_000_000), timings="invalid: throttled")
    found = outcomes(compare(make(), hot))
    assert found["ttft_s"] == "not compared"
    assert found["peak_bytes"] == "regression"


def test_lost_accuracy_is_paired(make: Make) -> None:
    worse = make(right=(0.58, 0.71, 0.60))
    changes = {change.name: change for change in compare(make(), worse)}
    assert changes["accuracy"].outcome == "regression"
    assert "400 common questions" in changes["accuracy"].why


def test_lost_is_a_regression(make: Make) -> None:
    lost = make(right=(0.58, 0.71, 0.55))
    assert lost.report.verdict == "lost"
    assert outcomes(compare(make(), lost))["verdict"] == "regression"
    assert outcomes(compare(lost, lost))["verdict"] == "no clear change"


def test_one_flip_is_noise(holds: BenchData) -> None:
    first = holds.answers[0]
    flipped = first.model_copy(update={"scores": (first.scores[0], first.scores[1], 1 - first.scores[2])})
    for n in (1, 2, 400):
        before = replace(holds, answers=holds.answers[:n])
        after = replace(holds, answers=(flipped, *holds.answers[1:n]))
        assert outcomes(compare(before, after))["accuracy"] == "no clear change"


def test_other_questions_are_not_compared(holds: BenchData) -> None:
    renamed = tuple(row.model_copy(update={"id": f"x{row.id}"}) for row in holds.answers)
    for answers in ((), renamed):
        change = compare(holds, replace(holds, answers=answers))[1]
        assert (change.name, change.outcome) == ("accuracy", "not compared")


def test_graded_scores_count_as_well(holds: BenchData) -> None:
    rows = [row.model_copy(update={"scores": (*row.scores[:2], 0.9)}) for row in holds.answers]
    worse = [row.model_copy(update={"scores": (*row.scores[:2], 0.7)}) for row in rows]
    before, after = (replace(holds, answers=tuple(answers)) for answers in (rows, worse))
    assert outcomes(compare(before, after))["accuracy"] == "regression"


@pytest.mark.slow
def test_noise_alone_seldom_counts(holds: BenchData) -> None:
    """Two benchmarks of one model whose answers differ at random: at most 5 % are called changed."""
    rng, called = np.random.default_rng(1), 0
    rows = holds.answers[:100]
    for _ in range(120):
        sides = []
        for _side in range(2):
            right = np.array([row.scores[2] for row in rows]) != (rng.random(len(rows)) < 0.1)
            sides.append(
                tuple(
                    row.model_copy(update={"scores": (*row.scores[:2], float(s))})
                    for row, s in zip(rows, right, strict=True)
                )
            )
        before, after = (replace(holds, answers=side) for side in sides)
        called += outcomes(compare(before, after)[:2])["accuracy"] != "no clear change"
    assert called <= 6


@pytest.mark.parametrize(("factor", "outcome"), [(1.04, "no clear change"), (1.06, "regression"), (0.9, "improvement")])
def test_size(holds: BenchData, factor: float, outcome: str) -> None:
    after = changed(holds, size_bytes=int(holds.report.size_bytes * factor))
    assert outcomes(compare(holds, after))["size_bytes"] == outcome


def test_counterparts_are_found(benches: list[BenchData], holds: BenchData) -> None:
    comparisons, alone = compare_all(benches, [holds])
    assert [one.after.title for one in comparisons] == [holds.title]
    assert len(alone) == 3
    other = changed(holds, scheme="gguf-q4_k_m")
    assert [one.differences for one in compare_all([holds], [other])[0]] == [("scheme: gguf-q8_0 → gguf-q4_k_m",)]
    assert compare_all(benches, [other]) == ([], [f"{one.title} has no counterpart" for one in (*benches, other)])


def test_another_machine_is_said(holds: BenchData) -> None:
    used = holds.report.environment
    other = used.model_copy(update={"threads": None, "readings": used.readings | {"power_mode": "MAXN"}})
    assert differences(holds, changed(holds, environment=other)) == ["threads: 4 → unknown", "power mode: 15W → MAXN"]
    assert differences(holds, holds) == []
