"""Trained weights through the exporter: what no random weights show, since they have no loud tokens and channels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT

# scheme -> largest KL divergence, largest loss of perplexity
BOUNDS = {"onnx-int8": (0.02, 0.01), "gguf-q4_k_m": (0.15, 0.10)}


@pytest.mark.peer
@pytest.mark.timeout(900)
def test_every_format_keeps_what_a_trained_model_knows() -> None:
    script, cache = ROOT / "benchmarks" / "real_weights.py", Path("~/.cache/mpa-edge-tests/real-weights").expanduser()
    chosen = [word for name in BOUNDS for word in ("--scheme", name)]
    # fewer than 32 passages: perplexity differs by 1 % by chance, either way (KL divergence does not)
    small = ["--passages", "32", "--vision-layers", "1", "--no-answers", "--folder", str(cache), "--json"]
    done = subprocess.run(
        [sys.executable, str(script), *chosen, *small],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["scheme"]: row for row in map(json.loads, done.stdout.splitlines())}
    off = {name: (row["kl_mean"], row["perplexity"] / row["perplexity_fp32"] - 1) for name, row in rows.items()}
    assert {name: one for name, one in off.items() if one[0] > BOUNDS[name][0] or one[1] > BOUNDS[name][1]} == {}
    assert sorted(rows) == sorted(BOUNDS)
