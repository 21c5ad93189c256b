"""Fused attention: what is replaced, and that the numbers are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from mpa_edge.artifact import read_artifact
from mpa_edge.exporters.onnx.attention import fuse_attention
from mpa_edge.exporters.verify.probes import drawn
from mpa_edge.vlm.onnxruntime.sessions import VisionEncoder
from mpa_edge.vlm.pixels import prepare
from tests.vlm.exported import STUDENT, onnx_folder

LAYERS = {STUDENT: 4, "smolvlm": 2, "internvl": 2, "llava": 2, "llava:clip": 2, "lfm2_vl": 3, "gemma4": 2}
MOST_DIFFERENT = 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("which", LAYERS)
def test_a_fused_encoder_gives_the_same_numbers(which: str, tmp_path: Path) -> None:
    folder = onnx_folder(which)
    pixels = prepare(read_artifact(folder).image, drawn(200, 120, seed=1)).pixels
    path = folder / "onnx" / "vision_encoder.onnx"
    if which == STUDENT:  # its tiles are always full; another program's need not be
        pixels["pixel_attention_mask"][..., 20:, :] = False
    before = VisionEncoder(path, 1).encode(pixels)

    model = onnx.load(path)
    assert fuse_attention(model) == LAYERS[which]
    assert not any(node.op_type == "Softmax" for node in model.graph.node)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "fused.onnx")
    after = VisionEncoder(tmp_path / "fused.onnx", 1).encode(pixels)
    np.testing.assert_allclose(after, before, atol=MOST_DIFFERENT * np.abs(before).max())


@pytest.mark.slow
def test_attention_in_windows_stays() -> None:
    model = onnx.load(onnx_folder("qwen2_5_vl") / "onnx" / "vision_encoder.onnx")
    nodes = [node.op_type for node in model.graph.node]
    assert fuse_attention(model) == 0
    assert [node.op_type for node in model.graph.node] == nodes
