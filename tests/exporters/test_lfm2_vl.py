"""What other programs got wrong when they converted LFM2-VL: the gate refuses such an export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mpa_edge.config.library import load_scheme
from mpa_edge.exporters.graphs import lfm2_vl
from tests.exporters import matrix
from tests.vlm.exported import fill_parts

pytestmark = pytest.mark.slow


def without_antialias(place: Tensor, size: Tensor, side: int) -> Tensor:
    """Between the two nearest entries of the table, however small the image is."""
    center = (place.to(torch.float32) + 0.5) * (side / size.to(torch.float32))
    entry = torch.arange(side, dtype=torch.float32) + 0.5
    weight = (1 - (entry - center[..., None]).abs()).clamp(min=0)
    return weight / weight.sum(-1, keepdim=True).clamp(min=1e-6)


def test_positions_without_antialias_are_refused(tmp_path: Path, monkeypatch) -> None:
    matrix.in_one_process(monkeypatch)
    monkeypatch.setattr(lfm2_vl, "stretch", without_antialias)
    source = matrix.run_of("lfm2_vl", tmp_path)
    fill_parts("lfm2_vl", source.exports / "parts", ("embed", "decoder"))
    cell = matrix.measure(source, load_scheme("onnx-int8"))
    assert cell["result"] == "failed"
    assert "vision" in cell["reason"]
