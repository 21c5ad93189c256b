"""The language side of every family: token embeddings, and a decoder that takes embeddings and a key-value cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpa_edge.exporters.graphs.modules import Graph, additive_mask, onnx_form

MULTIMODAL_ROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
BATCH, LENGTH, PAST, TOTAL = 2, 3, 5, 8
"""Sizes of the sample to trace with; TOTAL = PAST + LENGTH."""


class Embed(nn.Module):
    """Token ids -> embeddings; with zeros where an image has the features of inner layers (DeepStack)."""

    def __init__(self, embedding: nn.Module, n_inner: int = 0) -> None:
        super().__init__()
        self.embedding, self.n_inner = embedding, n_inner

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, S) -> (B, S, (1 + inner layers) x hidden)."""
        found = self.embedding(input_ids)
        return nn.functional.pad(found, (0, self.n_inner * found.shape[-1])) if self.n_inner else found


class Decoder(nn.Module):
    """Embeddings of new tokens and the cache of earlier ones -> logits and the extended cache."""

    def __init__(self, language: nn.Module, head: nn.Module, config: Any) -> None:
        super().__init__()
        self.language, self.head, self.config = language, head, config

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        num_logits_to_keep: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """(B, S, hidden), (B, P+S), (B, S) or (3, B, S), (), 2 x layers of (B, K, P, D) -> logits, 2 x layers.

        With features of inner layers the embeddings are (B, S, (1 + inner layers) x hidden), as in llama.cpp.
        """
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        embeds, *inner = inputs_embeds.split(self.config.hidden_size, -1)
        hidden = self.language(
            inputs_embeds=embeds,
            attention_mask=causal_mask(attention_mask, inputs_embeds.shape[1]),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            **({"deepstack_visual_embeds": inner} if inner else {}),
        ).last_hidden_state
        kept = last(hidden, num_logits_to_keep)
        return (self.head(kept), *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


def causal_mask(attention_mask: Tensor, n_new: int) -> Tensor:
    """(B, P+S) of 0 and 1 -> additive mask (B, 1, S, P+S): a token sees itself and earlier tokens, but no padding."""
    total = attention_mask.shape[1]
    place = torch.arange(total, device=attention_mask.device)
    causal = place[None, :] <= place[total - n_new :, None]
    return additive_mask(causal[None, None] & attention_mask.to(torch.bool)[:, None, None, :])


def last(hidden: Tensor, count: Tensor) -> Tensor:
    """(B, S, hidden) -> (B, count, hidden): the last positions, all of them where `count` is 0."""
    length = hidden.shape[1]
    start = torch.where(count == 0, 0, length - count)
    place = torch.arange(length, device=hidden.device)
    return hidden[:, place >= start]


def embed(model: Any) -> Graph:
    """Graph of the token embeddings."""
    ids = torch.ones(BATCH, LENGTH, dtype=torch.long)
    axes = ({0: "batch_size", 1: "sequence_length"},)
    module = Embed(model.get_input_embeddings(), inner_layers(model.config))
    return Graph(module, (ids,), ("input_ids",), ("inputs_embeds",), axes)


def inner_layers(config: Any) -> int:
    """How many decoder layers take features of inner layers of the vision tower."""
    return len(getattr(config.vision_config, "deepstack_visual_indexes", ()))


def added(hidden: Tensor, _places: Any, features: Tensor) -> Tensor:
    """Add the features of an inner vision layer to the decoder's hidden states; at text tokens they are zero."""
    return hidden + features


def decoder(model: Any) -> Graph:
    """Graph of the language model with its head."""
    config = model.config.get_text_config()
    language = getattr(model.model, "text_model", None) or model.model.language_model
    language.embed_tokens = None  # embeddings come from outside
    if n_inner := inner_layers(model.config):
        language._deepstack_process = added  # the original asks which tokens are an image's
    module = onnx_form(Decoder(language, model.lm_head, config))
    past_shape = (BATCH, config.num_key_value_heads, PAST, head_size(config))
    past = [torch.rand(past_shape) for _ in range(2 * config.num_hidden_layers)]
    positions = torch.arange(PAST, TOTAL).expand(BATCH, LENGTH).contiguous()
    position_axes = {0: "batch_size", 1: "sequence_length"}
    if model.config.model_type in MULTIMODAL_ROPE:
        positions = positions.expand(3, BATCH, LENGTH).contiguous()
        position_axes = {1: "batch_size", 2: "sequence_length"}
    parts = [f"{i}.{part}" for i in range(config.num_hidden_layers) for part in ("key", "value")]
    hidden = torch.rand(BATCH, LENGTH, (1 + n_inner) * config.hidden_size)
    return Graph(
        module,
        (hidden, torch.ones(BATCH, TOTAL, dtype=torch.long), positions, torch.tensor(2), *past),
        (
            "inputs_embeds",
            "attention_mask",
            "position_ids",
            "num_logits_to_keep",
            *(f"past_key_values.{p}" for p in parts),
        ),
        ("logits", *(f"present.{p}" for p in parts)),
        (
            {0: "batch_size", 1: "sequence_length"},
            {0: "batch_size", 1: "total_sequence_length"},
            position_axes,
            {},
            *({0: "batch_size", 2: "past_sequence_length"} for _ in parts),
        ),
    )


def head_size(config: Any) -> int:
    """Width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
