"""Gemma 4: patches of images of any shape, padded to one number; decoder layers with embeddings of their own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mpa_edge.exporters.graphs.modules import Graph, additive_mask, onnx_form

SHAPES = ((6, 9), (3, 12))
"""Rows and columns of patches of the images to trace with."""


class Vision(nn.Module):
    """Tower, mean of neighbouring patches, and projector."""

    def __init__(self, core: Any) -> None:
        super().__init__()
        tower = core.vision_tower
        self.embedder, self.rotary, self.layers = tower.patch_embedder, tower.encoder.rotary_emb, tower.encoder.layers
        for layer in self.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, child in part.named_children():
                    if hasattr(child, "use_clipped_linears"):
                        setattr(part, name, Clipped(child))
        self.side, self.projector = tower.config.pooling_kernel_size, core.embed_vision
        # the model scales the means by the root of their width, which a norm takes back: 16 bits could not hold them
        self.projector.embedding_pre_projection_norm.eps /= tower.config.hidden_size

    def forward(self, pixel_values: Tensor, pixel_position_ids: Tensor) -> Tensor:
        """(N, P, values of a patch), (N, P, 2) of column and row, -1 for padding -> (tokens of all images, hidden)."""
        is_padding = (pixel_position_ids < 0).all(-1)
        hidden = self.embedder(pixel_values, pixel_position_ids, is_padding)
        mask = additive_mask(~is_padding)[:, None, None, :]
        turned = self.rotary(hidden, pixel_position_ids)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=turned, position_ids=pixel_position_ids)
        means, is_token = self._means(hidden, pixel_position_ids, ~is_padding)
        return self.projector(means.flatten(0, 1)[is_token.flatten()])

    def _means(self, hidden: Tensor, places: Tensor, is_real: Tensor) -> tuple[Tensor, Tensor]:
        """(N, P, C) -> (N, P / side^2, C) of side x side neighbours, and which of them exist in the image."""
        column, row = places.clamp(min=0).unbind(-1)
        wide = (column.amax(1, keepdim=True) + 1) // self.side
        token = torch.arange(hidden.shape[1] // self.side**2, device=hidden.device)
        belongs = (column // self.side + wide * (row // self.side))[:, None, :] == token[None, :, None]
        belongs = belongs & is_real[:, None, :]
        return torch.matmul(belongs.to(hidden.dtype) / self.side**2, hidden), belongs.any(-1)


class Clipped(nn.Module):
    """A linear layer between bounds that are constants; none where they are infinite."""

    def __init__(self, wrapper: Any) -> None:
        super().__init__()
        self.linear = wrapper.linear
        names = ("input_min", "input_max", "output_min", "output_max") if wrapper.use_clipped_linears else ()
        bounds = [float(getattr(wrapper, name)) for name in names]
        self.before, self.after = (pair if any(map(math.isfinite, pair)) else None for pair in (bounds[:2], bounds[2:]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = self.linear(x if self.before is None else x.clamp(*self.before))
        return y if self.after is None else y.clamp(*self.after)


class Embed(nn.Module):
    """Token ids -> embeddings, and the embeddings of each layer; in the place of an image those of padding."""

    def __init__(self, language: Any, config: Any) -> None:
        super().__init__()
        self.tokens, self.layers = language.embed_tokens, language.embed_tokens_per_layer
        self.shape = (config.text_config.num_hidden_layers, config.text_config.hidden_size_per_layer_input)
        self.padding_id = config.text_config.pad_token_id
        ids = (config.image_token_id, config.video_token_id, config.audio_token_id)
        self.seen_or_heard = [token for token in ids if token is not None]

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> (B, S, hidden), (B, S, layers, width)."""
        words = input_ids
        for token in self.seen_or_heard:
            words = torch.where(words == token, self.padding_id, words)
        return self.tokens(words), self.layers(words).reshape(*input_ids.shape, *self.shape)


def vision(model: Any) -> Graph:
    """Graph of the vision encoder with its projector."""
    module = onnx_form(Vision(model.model))
    rows, columns = torch.tensor(SHAPES).unbind(1)
    place = torch.arange(int((rows * columns).max()))[None]
    places = torch.stack([place % columns[:, None], place // columns[:, None]], -1)
    places = torch.where((place < (rows * columns)[:, None])[..., None], places, -1)
    axes = {0: "num_images", 1: "num_patches"}
    n_values = model.model.vision_tower.patch_embedder.patch_size**2 * 3
    return Graph(
        module,
        (torch.rand(*places.shape[:2], n_values), places),
        ("pixel_values", "pixel_position_ids"),
        ("image_features",),
        (axes, axes),
    )


def embed(model: Any, sample: Tensor) -> Graph:
    """Graph of the embeddings; `sample` are ids to trace with."""
    module = Embed(model.model.language_model, model.config)
    axes = ({0: "batch_size", 1: "sequence_length"},)
    return Graph(module, (sample,), ("input_ids",), ("inputs_embeds", "per_layer_inputs"), axes)


def language(decoder: Any) -> None:
    """Put what is this family's own into its form for ONNX, in place."""
    decoder.embed_tokens_per_layer = None  # embeddings come from outside
    decoder.first_kv_shared_layer_idx = -1  # no shortcut for tokens without logits
    for layer in decoder.layers:
        own = layer.self_attn
        layer.keys = () if own.is_kv_shared_layer else (own.k_proj.out_features // own.head_dim, own.head_dim)
