"""Trained weights through the exporter: what no random weights show, since they have no loud tokens and channels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpa_edge.config.library import load_scheme
from mpa_edge.exporters import build
from mpa_edge.exporters.source import open_source
from mpa_edge.exporters.verify.probes import TEXT, TEXT_TOKENS
from mpa_edge.vlm.transformers.checkpoint import load_processor
from tests.docs.markdown import ROOT

# scheme -> largest KL divergence
BOUNDS = {"onnx-int8": 0.02, "gguf-q4_k_m": 0.15}


CACHE = Path("~/.cache/mpa-edge-tests/real-weights").expanduser()


@pytest.mark.peer
@pytest.mark.timeout(900)
def test_every_format_keeps_what_a_trained_model_knows() -> None:
    script = ROOT / "benchmarks" / "real_weights.py"
    chosen = [word for name in BOUNDS for word in ("--scheme", name)]
    # too few passages for perplexity, which differs by 1 % by chance, either way; KL divergence does not
    small = ["--passages", "8", "--vision-layers", "1", "--no-answers", "--folder", str(CACHE), "--json"]
    done = subprocess.run(
        [sys.executable, str(script), *chosen, *small],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["scheme"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert sorted(rows) == sorted(BOUNDS)
    assert {name: row["kl_mean"] for name, row in rows.items() if row["kl_mean"] > BOUNDS[name]} == {}


@pytest.mark.peer
@pytest.mark.timeout(900)
def test_the_gate_tells_careful_rounding_from_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the gate's own text, behind no image: 4 bits rounded by importance are within the bound, others are not."""
    import real_weights

    checkpoint = CACHE / "checkpoint-0-1"
    if not (checkpoint / "processor_config.json").is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        real_weights.build(real_weights.fetch(CACHE), checkpoint, 0.0, 1)
    source, scheme = open_source(str(checkpoint), str(tmp_path)), load_scheme("gguf-q4_0")
    reference = real_weights.TorchDecoder(checkpoint)
    ids = load_processor(str(checkpoint)).tokenizer(TEXT, add_special_tokens=False)["input_ids"][:TEXT_TOKENS]
    logits = reference.feed(ids, every=True)[:-1]
    found = {}
    for name, weighted in (("careful", build.WEIGHTED), ("plain", ())):
        monkeypatch.setattr(build, "WEIGHTED", weighted)
        out = tmp_path / f"{name}.gguf"
        context = build.BuildContext(source, tmp_path, checkpoint / "parts", threads=1)
        build.make_component(context, scheme, "language", out)
        decoder = real_weights.GgufDecoder({"language": out})
        found[name] = real_weights.quality(decoder, [ids], lambda _: logits)["kl_mean"]
    assert found["careful"] < scheme.tolerance.kl_max < found["plain"]
