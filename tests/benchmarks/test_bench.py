"""What makes docs/bench.json: its bounds, and one real job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT
from tests.vlm.exported import onnx_folder


def part(rounds: int, medians: list[float]) -> dict:
    import bench

    where = {"versions": {}, "machine": {"cores": 2, "cpu": "x"}, "threads": 1, "command": "c", "date": "d"}
    found = {"ttft_s": bench.spread_of(medians)}
    return {**where, "load_before": 0.1, "stolen_share": 0.0, "rounds": rounds, "exports": {"student": found}}


def test_nine_of_ten() -> None:
    import report

    assert "9 of 10 | met (9 of 10)" in report.repeat_part(part(10, [1.0] * 9 + [1.5]))[-1]
    assert "8 of 10 | missed (9 of 10)" in report.repeat_part(part(10, [1.0] * 8 + [1.5, 1.06]))[-1]


def test_a_busy_machine_is_said() -> None:
    import report

    quiet = part(1, [1.0])
    assert "other work" not in report.where(quiet)
    assert "other work" in report.where(quiet | {"load_before": 0.6})
    assert "other work" in report.where(quiet | {"stolen_share": 0.02})


def test_every_part_was_measured() -> None:
    known = json.loads((ROOT / "docs" / "bench.json").read_text(encoding="utf-8"))
    assert set(known) == {"memory", "repeat"}


@pytest.mark.slow
@pytest.mark.peer
def test_a_job_answers_at_a_fixed_length(tmp_path: Path) -> None:
    import bench

    from mpa_edge.bench.device.protocol import Step

    bundle, ids = bench.bundle_of(onnx_folder("student"), tmp_path, bench.STUDENT, tiles=3, tokens=8)
    lines = bench.job(bundle, tmp_path / "job", [Step("artifact", each, 1) for each in ids])
    answers = [line.values for line in lines if line.kind == "answer"]
    assert [values["id"] for values in answers] == ids
    assert {values["tokens"] for values in answers} == {8}
    assert 0 < (bench.figures_of(lines)["ttft_s"] or 0.0) < 60
