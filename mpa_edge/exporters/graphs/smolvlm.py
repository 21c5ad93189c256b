"""SmolVLM and Idefics3: an image is a list of tiles; tiles that are all zero are padding and give no features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpa_edge.exporters.graphs.modules import Graph, additive_mask, onnx_form


class Vision(nn.Module):
    """Tower and connector over the tiles of a batch of images."""

    def __init__(self, tower: Any, connector: nn.Module) -> None:
        super().__init__()
        self.tower, self.connector = tower, connector

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor) -> Tensor:
        """(B, N, 3, H, W), bool (B, N, H, W) -> (real tiles, tokens of a tile, text hidden)."""
        pixels, mask = pixel_values.flatten(0, 1), pixel_attention_mask.flatten(0, 1)
        chosen = real_tiles(pixels)
        pixels, mask = pixels.index_select(0, chosen), mask.index_select(0, chosen)
        patches = patch_mask(mask, self.tower.patch_size)
        hidden = self.tower.embeddings(pixel_values=pixels, patch_attention_mask=patches)
        added = additive_mask(patches.flatten(1))[:, None, None, :]
        hidden = self.tower.encoder(inputs_embeds=hidden, attention_mask=added).last_hidden_state
        return self.connector(self.tower.post_layernorm(hidden))


def real_tiles(pixels: Tensor) -> Tensor:
    """(tiles, 3, H, W) -> indices of tiles that are not all zero; the first where all are, as transformers does."""
    real = (pixels != 0).flatten(1).any(1)
    first = torch.arange(real.shape[0], device=real.device) == 0
    return torch.nonzero(real | (first & ~real.any())).squeeze(1)


def patch_mask(mask: Tensor, patch: int) -> Tensor:
    """(tiles, H, W) -> (tiles, H/patch, W/patch): patches with at least one real pixel."""
    tiles, height, width = mask.shape
    blocks = mask.reshape(tiles, height // patch, patch, width // patch, patch)
    return blocks.permute(0, 1, 3, 2, 4).flatten(3).any(-1)


def vision(model: Any) -> Graph:
    """Graph of the vision encoder with its connector."""
    core, size = model.model, model.config.vision_config.image_size
    pixels = torch.rand(2, 3, 3, size, size)
    pixels[1, 2] = 0
    mask = torch.ones(2, 3, size, size, dtype=torch.bool)
    return Graph(
        onnx_form(Vision(core.vision_model, core.connector)),
        (pixels, mask),
        ("pixel_values", "pixel_attention_mask"),
        ("image_features",),
        ({0: "batch_size", 1: "num_images"}, {0: "batch_size", 1: "num_images"}),
        "tower.encoder.layers",
    )
