"""Qwen3-VL: Qwen2-VL with learned positions, and with features of inner layers (DeepStack) beside the last one's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpa_edge.exporters.graphs import qwen2_vl
from mpa_edge.exporters.graphs.modules import Graph, additive_mask
from mpa_edge.exporters.graphs.qwen2_vl import PatchMatMul, Places, attention

NEAR = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
"""The four table entries around a position, as steps down and to the right."""


class Vision(nn.Module):
    """Tower and mergers. The features of a token are concatenated: the last layer's, then those of inner layers."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.patches = PatchMatMul(tower.patch_embed.proj)
        self.positions, self.side = tower.pos_embed, tower.num_grid_per_side
        self.rotary, self.blocks, self.merger = tower.rotary_pos_emb, tower.blocks, tower.merger
        self.mergers = getattr(tower, "deepstack_merger_list", [])  # Qwen3.5 has none
        inner = tower.deepstack_visual_indexes if self.mergers else ()
        self.inner = dict(zip(inner, range(len(self.mergers)), strict=True))
        self.merge = tower.spatial_merge_size

    def forward(self, pixel_values: Tensor, grids: Tensor) -> Tensor:
        """(P, values of a patch), (images, 3) -> (P / merge^2, (1 + inner layers) x text hidden)."""
        places = Places(grids, pixel_values.shape[0], self.merge)
        turned = self.rotary(pixel_values, torch.stack([places.row, places.column], -1))
        mask = additive_mask(places.visible())[None, None]
        hidden = (self.patches(pixel_values) + learned(self.positions, self.side, places))[None]
        features = []
        for i, block in enumerate(self.blocks):
            hidden = hidden + attention(block.attn, block.norm1(hidden), mask, turned)
            hidden = hidden + block.mlp(block.norm2(hidden))
            if i in self.inner:
                features.append(self.mergers[self.inner[i]](hidden[0]))
        return torch.cat([self.merger(hidden[0]), *features], -1)


def learned(table: nn.Embedding, side: int, places: Places) -> Tensor:
    """Learned positions of a side x side square, interpolated to each image with aligned corners -> (P, hidden)."""
    row, down = stretched(places.row, places.height, side)
    column, right = stretched(places.column, places.width, side)
    step_down, step_right = NEAR.unbind(1)
    rows = (row[:, None] + step_down).clamp(max=side - 1)
    columns = (column[:, None] + step_right).clamp(max=side - 1)
    share_down = torch.where(step_down == 1, down[:, None], 1 - down[:, None])
    share_right = torch.where(step_right == 1, right[:, None], 1 - right[:, None])
    return (table(rows * side + columns) * (share_down * share_right)[..., None]).sum(1)


def stretched(place: Tensor, size: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Map a position on an axis of `size` to one of `side`: (index of the entry before it, fraction behind that).

    Integers as far as possible: 16-bit floats would end at another entry.
    """
    steps = (size - 1).clamp(min=1)
    scaled = place * (side - 1)
    return scaled // steps, (scaled % steps).to(torch.float32) / steps


def vision(model: Any) -> Graph:
    """Graph of the vision encoder with its mergers."""
    return qwen2_vl.vision(model, "image_grid_thw", Vision)
