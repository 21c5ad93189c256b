"""Which settings are tried, and which is recommended."""

from __future__ import annotations

import numpy as np
import pytest

from mpa_edge.bench.results.records import BenchReport
from mpa_edge.bench.results.sweep import axes_of, budget_for, point_of, settings, slug, sweep_of
from mpa_edge.config.library import load_target
from mpa_edge.errors import MpaError
from tests.bench import made_up

CPU = load_target("cpu")


def report(seed: int = 1, slower: float = 1.0, emulated: bool = False) -> BenchReport:
    rng = np.random.default_rng(seed)
    rows, timed = made_up.answers(60, (0.5, 0.7, 0.7), rng), made_up.timings(slower, rng)
    return made_up.report_of(
        rows, timed, run="r", scheme="gguf-q8_0", target="cpu", emulated=emulated, peak=100_000_000
    )


def test_every_combination_once_in_a_fixed_order() -> None:
    made = settings(axes_of("scheme=a:b,threads=1:4"), CPU, cores=8)
    assert made == [
        {"threads": 1, "scheme": "a"},
        {"threads": 1, "scheme": "b"},
        {"threads": 4, "scheme": "a"},
        {"threads": 4, "scheme": "b"},
    ]
    assert len({slug(one) for one in made}) == 4


def test_without_values_the_target_and_the_device_choose() -> None:
    made = settings(axes_of("threads,image_budget,scheme"), CPU, cores=3)
    assert {one["threads"] for one in made} == {1, 2, 3}
    assert {one["image_budget"] for one in made} == {1, CPU.image.max_tiles}
    assert {one["scheme"] for one in made} == {choice.name for choice in CPU.schemes}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no axis ''"),
        ("tiles", "no axis 'tiles'"),
        ("threads=", "threads has no values"),
        ("threads=two", "threads=two is no count"),
        ("threads=0", "threads=0 is no count"),
        ("threads=1,", "no axis ''"),
        ("image_budget=1:999", "image_budget=999 is no count"),
    ],
)
def test_a_wrong_sweep_is_one_line_with_the_fix(text: str, message: str) -> None:
    with pytest.raises(MpaError, match=message):
        settings(axes_of(text), CPU, cores=2)


def test_pixels_go_with_tiles() -> None:
    narrow = budget_for(CPU, 1)
    assert narrow.max_tiles == 1
    assert narrow.max_pixels == round(CPU.image.max_pixels / CPU.image.max_tiles)


def test_a_timing_that_does_not_count_is_null_and_never_within_budgets() -> None:
    valid, emulated = report(), report(emulated=True)
    assert point_of({"threads": 1}, valid).ttft_s == valid.latency["ttft_s"].p50
    point = point_of({"threads": 1}, emulated)
    assert (point.ttft_s, point.tokens_per_s, point.peak_bytes, point.within_budgets) == (None, None, None, False)
    assert point.accuracy == emulated.accuracy.artifact.value


def test_the_recommended_one_is_on_the_front() -> None:
    points = [point_of({"threads": n}, report(seed=n, slower=0.5 + n / 10)) for n in (1, 2, 4)]
    made = sweep_of("cpu", points)
    assert made.recommended is not None
    assert made.points[made.recommended].on_front
    assert sweep_of("cpu", [point_of({"threads": 1}, report(emulated=True))]).recommended is None
