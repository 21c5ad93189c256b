"""The benchmark of scale counts right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT

SHARD = 50


@pytest.mark.slow
def test_killed_at_60_percent_every_row_is_there_once(tmp_path: Path) -> None:
    words = ("--images", 1000, "--engine", "local", "--shard-size", SHARD, "--folder", tmp_path / "kept")
    command = [sys.executable, ROOT / "benchmarks" / "scale.py", *words, "--out", tmp_path / "scale.json"]
    done = subprocess.run(
        list(map(str, command)), env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["images"], found["rows"], found["unique_ids"]) == (1000, 1000, 1000)
    assert 0 <= found["rows_redone"] <= SHARD
    assert found["resume_s"] > 0
    assert 0.6 * 1000 / SHARD <= found["first"]["parts"] <= 1000 / SHARD
    assert str(tmp_path) not in found["command"]
    assert json.loads((tmp_path / "scale.json").read_text()) == {"runs": [found]}
