"""Qwen2-VL: patches of all images in one row; the graph derives from the grids which belong together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpa_edge.exporters.graphs.modules import Graph, additive_mask, grouped_attention, onnx_form

GRIDS = ((1, 8, 10), (1, 4, 6))
"""Time, height and width in patches of the images to trace with."""


class PatchMatMul(nn.Module):
    """A convolution whose stride is its kernel size, as one MatMul."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight = nn.Parameter(convolution.weight.detach().flatten(1).T.contiguous(), requires_grad=False)
        self.bias = convolution.bias

    def forward(self, pixels: Tensor) -> Tensor:
        """(P, values of a patch) -> (P, hidden)."""
        hidden = torch.matmul(pixels, self.weight)
        return hidden if self.bias is None else hidden + self.bias


class Places:
    """Position of each patch, all of shape (P,). Patches come in blocks of merge x merge, as the merger wants them."""

    def __init__(self, grids: Tensor, n_patches: int, merge: int) -> None:
        ends = grids.prod(1).cumsum(0)
        patch = torch.arange(n_patches, device=grids.device)
        self.image = (patch[:, None] >= ends[None]).sum(1)
        """Index of its image."""
        _, self.height, self.width = grids[self.image].unbind(1)
        """Of its image, in patches."""
        within = patch - (ends - grids.prod(1))[self.image]
        self.frame = within // (self.height * self.width)
        """Index of its frame in the image."""
        block, inner = (within % (self.height * self.width)) // merge**2, within % merge**2
        blocks_wide = self.width // merge
        self.row = block // blocks_wide * merge + inner // merge
        """Counted from the top."""
        self.column = block % blocks_wide * merge + inner % merge
        """Counted from the left."""

    def visible(self, window: int | None = None) -> Tensor:
        """Bool (P, P): pairs in the same frame of an image and, with `window`, in the same window of that size."""
        marks = [self.image, self.frame]
        if window is not None:
            marks += [self.row // window, self.column // window]
        same = [mark[:, None] == mark[None] for mark in marks]
        return torch.stack(same).all(0)


class Vision(nn.Module):
    """Tower and merger. Windows (Qwen2.5-VL) are masks here: patches are not reordered."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.patches = PatchMatMul(tower.patch_embed.proj)
        self.rotary, self.blocks, self.merger = tower.rotary_pos_emb, tower.blocks, tower.merger
        self.merge = tower.spatial_merge_size
        full = getattr(tower, "fullatt_block_indexes", None)
        self.whole = range(len(tower.blocks)) if full is None else full
        self.window = None if full is None else tower.window_size // self.merge // tower.patch_size * self.merge

    def forward(self, pixel_values: Tensor, grids: Tensor) -> Tensor:
        """(P, values of a patch), (images, 3) -> (P / merge^2, text hidden)."""
        places = Places(grids, pixel_values.shape[0], self.merge)
        turned = self.rotary(pixel_values, torch.stack([places.row, places.column], -1))
        everywhere = additive_mask(places.visible())[None, None]
        nearby = everywhere if self.window is None else additive_mask(places.visible(self.window))[None, None]
        hidden = self.patches(pixel_values)[None]
        for i, block in enumerate(self.blocks):
            hidden = hidden + attention(
                block.attn, block.norm1(hidden), everywhere if i in self.whole else nearby, turned
            )
            hidden = hidden + block.mlp(block.norm2(hidden))
        return self.merger(hidden)


def attention(layer: Any, hidden: Tensor, mask: Tensor, turned: tuple[Tensor, Tensor]) -> Tensor:
    """One attention over all patches, (1, P, hidden) -> the same; the mask separates images."""
    n_patches = hidden.shape[1]
    query, key, value = layer.qkv(hidden).reshape(n_patches, 3, layer.num_heads, -1).transpose(0, 2).unbind(1)
    seen, _ = grouped_attention(
        None, rotated(query, *turned)[None], rotated(key, *turned)[None], value[None], mask, layer.scaling
    )
    return layer.proj(seen.reshape(1, n_patches, -1))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (heads, P, D); cos and sin are (P, D)."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


def vision(model: Any, grids_name: str = "grid_thw", encoder: type[nn.Module] = Vision) -> Graph:
    """Graph of the vision encoder with its merger; transformers.js names the grids differently in each generation."""
    tower = model.model.visual
    grids = torch.tensor(GRIDS)
    n_values = tower.patch_embed.proj.weight[0].numel()
    return Graph(
        onnx_form(encoder(tower)),
        (torch.rand(int(grids.prod(1).sum()), n_values), grids),
        ("pixel_values", grids_name),
        ("image_features",),
        ({0: "num_patches"}, {0: "num_images"}),
    )
