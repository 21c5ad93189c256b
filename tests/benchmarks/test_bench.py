"""The arithmetic behind docs/bench.json, what the report makes of it, and one round of the real thing."""

from __future__ import annotations

import doctest
import json
import sys
from pathlib import Path

import pytest

from tests.vlm.exported import onnx_folder
from tests.vlm.llama_exported import gguf_folder

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench  # noqa: E402
import bench_bandwidth  # noqa: E402
import bench_decode  # noqa: E402
import bench_jobs  # noqa: E402
import bench_pairs  # noqa: E402
import bench_report  # noqa: E402


@pytest.mark.parametrize("module", [bench, bench_decode, bench_pairs, bench_report], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module) -> None:
    done = doctest.testmod(module)
    assert done.attempted > 0
    assert done.failed == 0


def measured(ttft: float, speed: float) -> dict:
    row = {"harness": 1.0, "bare": 1.0, "ci95": None}
    return {"pairs": 4, "ttft_s": row | {"ratio": ttft}, "tokens_per_s": row | {"ratio": speed}}


@pytest.mark.parametrize(
    ("ttft", "speed", "words"),
    [(1.019, 0.981, ["met", "met"]), (1.021, 0.979, ["missed", "missed"]), (0.5, 2.0, ["met", "met"])],
)
def test_only_what_the_harness_costs_is_held_against_it(ttft: float, speed: float, words: list[str]) -> None:
    rows = [bench_report.overhead_row("x", measured(ttft, speed), metric) for metric in ("ttft_s", "tokens_per_s")]
    assert [row[-1].split()[0] for row in rows] == words


def test_nine_of_ten() -> None:
    jobs = [1.0] * 9 + [1.5]
    found = bench.spread_of(jobs, [1.0] * 11)
    assert found["within_5_percent"] == found["ratio_within_5_percent"] == 9
    assert bench_report.repeat_row("x", found, 10)[4].startswith("met")
    worse = bench.spread_of([*jobs[1:], 1.06], [1.0] * 11)
    assert bench_report.repeat_row("x", worse, 10)[4].startswith("missed")
    # the machine became slower, and the bare loop with it
    moved = bench.spread_of([1.0] * 5 + [1.5] * 5, [1.0] * 6 + [1.5] * 5)
    assert moved["within_5_percent"] <= 5
    assert moved["ratio_within_5_percent"] == 9


def test_bandwidth_is_in_bytes_a_second() -> None:
    # a memory of today reads more than 0.5 and less than 2,000 GB a second
    assert 5e8 < bench_bandwidth.best_bytes_per_s(2**24, rounds=1) < 2e12


def test_results_say_what_was_measured() -> None:
    known = json.loads((ROOT / "docs" / "bench.json").read_text(encoding="utf-8"))
    assert set(known) == {"overhead", "memory", "repeat", "shapes"}
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert "\n".join(bench_report.bench_parts(known)) in text
    assert not any(word.startswith("/") for part in known.values() for word in part["command"].split())


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize("export", [onnx_folder, gguf_folder], ids=["onnx", "gguf"])
def test_both_sides_do_the_same_work(export, tmp_path: Path) -> None:
    bundle = bench_jobs.bundle_of(export("student"), tmp_path, bench_jobs.STUDENT, tiles=1, tokens=8)
    found = bench_pairs.pairs(bundle, tmp_path / "job", rounds=1, threads=1)
    assert len(found) == 16  # eight questions, twice
    for one, other in found:
        assert one["tokens"] == other["tokens"] == 8
        assert 0 < one["ttft_s"] < 60
        assert 0 < other["ttft_s"] < 60
        assert other["prompt_tokens"] > 36  # those of the picture, and the question
    answers = [json.loads(line) for line in (tmp_path / "job" / "out.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in answers] == ["loaded", "warm", *["answer"] * 16]
