"""Strict metrics against what the reference files gave (tests/golden/metrics/README.md), to the last bit."""

import json
from pathlib import Path

import pytest

from mpa_edge.metrics import METRICS

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"


@pytest.mark.parametrize("name", ["vqa-accuracy", "anls", "relaxed-accuracy"])
def test_strict_equals_the_reference(name: str) -> None:
    rows = [json.loads(line) for line in (GOLDEN / f"{name}.jsonl").read_bytes().splitlines()]
    assert len(rows) >= 1500
    assert {0.0, 1.0} <= {row["score"] for row in rows}
    wrong = [row for row in rows if METRICS[name].score(row["prediction"], row["answers"]) != row["score"]]
    assert wrong == []
