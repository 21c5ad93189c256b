"""The benchmark of scale: what it counts is right, and its page says what was measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
KEYS = {"images", "rows", "unique_ids", "rows_per_s", "driver_peak_rss_bytes", "resume_s", "rows_redone"}
SHARD = 50


def run(*words: object) -> str:
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_killed_at_60_percent_every_row_is_there_once(tmp_path: Path) -> None:
    words = ("--images", 1000, "--engine", "local", "--shard-size", SHARD, "--folder", tmp_path / "kept")
    found = json.loads(run(BENCHMARKS / "scale.py", *words, "--json", "--details", tmp_path / "details.json"))
    assert set(found) == KEYS
    assert (found["images"], found["rows"], found["unique_ids"]) == (1000, 1000, 1000)
    assert 0 <= found["rows_redone"] <= SHARD
    assert found["resume_s"] > 0
    details = json.loads((tmp_path / "details.json").read_text())
    assert 0.6 * 1000 / SHARD <= details["first"]["parts"] <= 1000 / SHARD
    assert str(tmp_path) not in details["command"]


def tables(text: str) -> dict[str, str]:
    return dict(re.findall(r"<!-- (\w+):begin -->\n(.*?)<!-- \w+:end -->", text, re.DOTALL))


def test_the_page_is_what_its_generator_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scale_plan
    import scale_report

    stored = json.loads((ROOT / "docs" / "scale.json").read_text())
    page = tables((ROOT / "docs" / "scale.md").read_text())
    assert page == dict(scale_report.blocks(stored, scale_plan.figures()))


def test_more_gpus_are_faster_and_what_is_shared_fills_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scale_plan

    plan, machine = scale_plan.planned(scale_plan.IN_PROCESS)
    few, many = (scale_plan.for_gpus(plan, machine, gpus, 1000) for gpus in (8, 512))
    assert few["hours"] > many["hours"] > few["hours"] / 64
    assert few["usd"] < many["usd"]
    shares = [{load["what"]: load["share"] for load in row["loads"]} for row in (few, many)]
    assert shares[0]["the driver"] < shares[1]["the driver"]
    alone = scale_plan.stage_s(machine)
    assert few["stage_s"]["annotate"] > alone["annotate"] / 8
