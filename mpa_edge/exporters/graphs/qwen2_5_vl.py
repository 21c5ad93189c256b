"""Qwen2.5-VL: as Qwen2-VL, but most layers look at windows only."""

from __future__ import annotations

from typing import Any

from mpa_edge.exporters.graphs import Graph, qwen2_vl


def vision(model: Any) -> Graph:
    """Graph of the vision encoder with its merger."""
    return qwen2_vl.vision(model, "image_grid_thw")
