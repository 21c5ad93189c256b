"""Qwen2.5-VL: Qwen2-VL with window attention in most layers."""

from __future__ import annotations

from typing import Any

from mpa_edge.exporters.graphs import qwen2_vl
from mpa_edge.exporters.graphs.modules import Graph


def vision(model: Any) -> Graph:
    """Graph of the vision encoder with its merger."""
    return qwen2_vl.vision(model, "image_grid_thw")
