"""LFM2-VL: tiles of any shape in one padded batch; decoder layers with a short convolution instead of attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpa_edge.exporters.graphs.modules import Graph, States, additive_mask, onnx_form

SHAPES = ((4, 6), (8, 8))
"""Rows and columns of patches of the tiles to trace with."""


class Vision(nn.Module):
    """SigLIP 2 tower and projector."""

    def __init__(self, core: Any, factor: int) -> None:
        super().__init__()
        tower, projector = core.vision_tower, core.multi_modal_projector
        self.patch = tower.embeddings.patch_embedding
        self.positions = tower.embeddings.position_embedding.weight
        self.side, self.factor = tower.embeddings.position_embedding_size, factor
        self.layers, self.after = tower.encoder.layers, tower.post_layernorm
        self.before = projector.layer_norm if projector.use_layer_norm else nn.Identity()
        self.linear_1, self.act, self.linear_2 = projector.linear_1, projector.act, projector.linear_2

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> Tensor:
        """(N, P, values of a patch), (N, P) of 0 and 1, (N, 2) -> (tokens of all tiles, text hidden)."""
        rows, columns = spatial_shapes[:, :1], spatial_shapes[:, 1:]
        place = torch.arange(pixel_values.shape[1], device=pixel_values.device)[None]
        weights = stretch(place // columns, rows, self.side)[..., :, None]
        weights = weights * stretch(place % columns, columns, self.side)[..., None, :]
        # the table on the left: quantizers round what they find on the right
        positions = torch.matmul(self.positions.T, weights.flatten(2).transpose(1, 2)).transpose(1, 2)
        hidden = self.patch(pixel_values) + positions
        mask = additive_mask(pixel_attention_mask.to(torch.bool))[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask)
        blocks, is_token = self._blocks(self.after(hidden), rows, columns)
        return self.linear_2(self.act(self.linear_1(self.before(blocks[is_token]))))

    def _blocks(self, hidden: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """(N, P, C) -> (N, P / factor^2, C factor^2) of neighbours, and which of them exist in the tile."""
        wide = columns // self.factor
        token = torch.arange(hidden.shape[1] // self.factor**2, device=hidden.device)[None]
        first = (token // wide) * self.factor * columns + (token % wide) * self.factor
        steps = [down * columns + right for down in range(self.factor) for right in range(self.factor)]
        index = (first[..., None] + torch.stack(steps, -1)).clamp(max=hidden.shape[1] - 1)
        found = torch.gather(hidden, 1, index.flatten(1)[..., None].expand(-1, -1, hidden.shape[-1]))
        return found.reshape(*index.shape[:2], -1), token < wide * (rows // self.factor)


def stretch(place: Tensor, size: Tensor, side: int) -> Tensor:
    """Weights of `side` table entries at places on an axis of `size`, (N, P) and (N, 1) -> (N, P, side).

    Bilinear with antialias: where the table is larger than the image, an entry is the mean of several.
    """
    scale = side / size.to(torch.float32)
    support = scale.clamp(min=1)
    center = (place.to(torch.float32) + 0.5) * scale
    entry = torch.arange(side, dtype=torch.float32, device=place.device) + 0.5
    weight = (1 - (entry - center[..., None]).abs() / support[..., None]).clamp(min=0)
    return weight / weight.sum(-1, keepdim=True).clamp(min=1e-6)  # padding is far from every entry


class ShortConvolution(nn.Module):
    """A gated convolution over the last few tokens, whose inputs it keeps."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.in_proj, self.out_proj = layer.in_proj, layer.out_proj
        self.taps = nn.Parameter(layer.conv.weight.detach()[:, 0].T.contiguous(), requires_grad=False)
        self.bias, self.layer = layer.conv.bias, layer.layer_idx
        self.kept = {"conv": (len(self.taps) - 1, self.taps.shape[1])}

    def forward(self, hidden_states: Tensor, past_key_values: States, attention_mask: Tensor, **_: Any) -> Tensor:
        """(B, S, hidden), states, (B, S) of 0 and 1 -> (B, S, hidden). Padding comes first and leaves no trace."""
        hidden = hidden_states * attention_mask[:, :, None].to(hidden_states.dtype)
        length = hidden.shape[1]
        before, after, values = self.in_proj(hidden).chunk(3, -1)
        seen = torch.cat([past_key_values.kept[self.layer][0], before * values], 1)
        mixed = sum(seen[:, i : i + length] * tap for i, tap in enumerate(self.taps))
        past_key_values.kept[self.layer] = (seen[:, length:],)
        return self.out_proj(after * (mixed if self.bias is None else mixed + self.bias))


def language(decoder: Any) -> None:
    """Put the layers that are this family's own into their form for ONNX, in place."""
    for layer in decoder.layers:
        if not layer.is_attention_layer:
            layer.conv = ShortConvolution(layer.conv)


def vision(model: Any) -> Graph:
    """Graph of the vision encoder with its projector."""
    n_values = model.model.vision_tower.embeddings.patch_embedding.in_features
    module = onnx_form(Vision(model.model, model.config.downsample_factor))
    shapes = torch.tensor(SHAPES)
    n_patches = int(shapes.prod(1).max())
    mask = (torch.arange(n_patches) < shapes.prod(1)[:, None]).long()
    return Graph(
        module,
        (torch.rand(len(SHAPES), n_patches, n_values), mask, shapes),
        ("pixel_values", "pixel_attention_mask", "spatial_shapes"),
        ("image_features",),
        ({0: "num_tiles", 1: "num_patches"}, {0: "num_tiles", 1: "num_patches"}, {0: "num_tiles"}),
    )
