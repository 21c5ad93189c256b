"""The language side of every family: token embeddings, and a decoder that takes embeddings and what it kept before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mpa_edge.exporters.graphs.modules import Graph, States, additive_mask, onnx_form

KEY_VALUE = ("key", "value")
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
        own = [[m.kept for m in layer.children() if hasattr(m, "kept")] for layer in language.layers]
        self.kept: list[dict[str, tuple[int, ...]] | None] = [found[0] if found else None for found in own]
        """Tensors that a layer keeps, with their shapes but for the batch; None: keys and values."""
        for i, layer in enumerate(language.layers):
            if getattr(layer, "keys", None) == ():
                self.kept[i] = {}  # it reads those of another layer
        is_sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        self.window = int(config.sliding_window) if is_sliding else None
        self.softcap = getattr(config, "final_logit_softcapping", None)
        self.has_layer_inputs = bool(layer_inputs(config))

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        num_logits_to_keep: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """(B, S, hidden), (B, P+S), (B, S) or (3, B, S), (), 2 x layers of (B, K, P, D) -> logits, 2 x layers.

        With features of inner layers the embeddings are (B, S, (1 + inner layers) x hidden), as in llama.cpp. Layers
        with a recurrent state have other tensors, see `States`. Embeddings of each layer, (B, S, layers, width), come
        before all of these.
        """
        cache, tensors, n_new = States(), iter(past), inputs_embeds.shape[1]
        options: dict[str, Any] = {"per_layer_inputs": next(tensors)} if self.has_layer_inputs else {}
        for layer, kept in enumerate(self.kept):
            if kept is None:
                cache.update(next(tensors), next(tensors), layer)
            else:
                cache.kept[layer] = tuple(next(tensors) for _ in kept)
        mask: Any = causal_mask(attention_mask, n_new)
        if self.window:
            mask = {"full_attention": mask, "sliding_attention": causal_mask(attention_mask, n_new, self.window)}
        elif cache.kept:
            of_states = dict.fromkeys(self.config.layer_types, attention_mask[:, attention_mask.shape[1] - n_new :])
            mask = of_states | {"full_attention": mask}
        embeds, *inner = inputs_embeds.split(self.config.hidden_size, -1)
        hidden = self.language(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            **(options | {"deepstack_visual_embeds": inner} if inner else options),
        ).last_hidden_state
        logits = self.head(last(hidden, num_logits_to_keep))
        if self.softcap:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        present = (
            cache.kept[i] if i in cache.kept else (cache.layers[i].keys, cache.layers[i].values)
            for i in range(len(self.kept))
        )
        return (logits, *(tensor for layer in present for tensor in layer))


def causal_mask(attention_mask: Tensor, n_new: int, window: int | None = None) -> Tensor:
    """(B, P+S) of 0 and 1 -> additive mask (B, 1, S, P+S): a token sees itself and earlier tokens, but no padding.

    With a `window`, only so many, itself included.
    """
    total = attention_mask.shape[1]
    place = torch.arange(total, device=attention_mask.device)
    causal = place[None, :] <= place[total - n_new :, None]
    if window:
        causal = causal & (place[None, :] > place[total - n_new :, None] - window)
    return additive_mask(causal[None, None] & attention_mask.to(torch.bool)[:, None, None, :])


def last(hidden: Tensor, count: Tensor) -> Tensor:
    """(B, S, hidden) -> (B, count, hidden): the last positions, all of them where `count` is 0."""
    length = hidden.shape[1]
    start = torch.where(count == 0, 0, length - count)
    place = torch.arange(length, device=hidden.device)
    return hidden[:, place >= start]


def embed(model: Any, own: Callable[[Any, Tensor], Graph] | None = None) -> Graph:
    """Graph of the token embeddings; `own` makes that of a family whose layers have embeddings, too."""
    ids = torch.ones(BATCH, LENGTH, dtype=torch.long)
    if own:
        return own(model, ids)
    axes = ({0: "batch_size", 1: "sequence_length"},)
    module = Embed(model.get_input_embeddings(), inner_layers(model.config))
    return Graph(module, (ids,), ("input_ids",), ("inputs_embeds",), axes)


def layer_inputs(config: Any) -> tuple[int, int] | None:
    """(layers, width) of the embeddings of each layer; None where layers have none."""
    width = getattr(config, "hidden_size_per_layer_input", None)
    return (config.num_hidden_layers, width) if width else None


def inner_layers(config: Any) -> int:
    """How many decoder layers take features of inner layers of the vision tower."""
    return len(getattr(config.vision_config, "deepstack_visual_indexes", ()))


def added(hidden: Tensor, _places: Any, features: Tensor) -> Tensor:
    """Add the features of an inner vision layer to the decoder's hidden states; at text tokens they are zero."""
    return hidden + features


def decoder(model: Any, prepare: Callable[[Any], None] | None = None) -> Graph:
    """Graph of the language model with its head; `prepare` changes layers that only its family has."""
    config = model.config.get_text_config()
    language = getattr(model.model, "text_model", None) or model.model.language_model
    language.embed_tokens = None  # embeddings come from outside
    if n_inner := inner_layers(model.config):
        language._deepstack_process = added  # the original asks which tokens are an image's
    if prepare:
        prepare(language)
    module = onnx_form(Decoder(language, model.lm_head, config))
    names, shapes, axes = [], [], []
    for i, kept in enumerate(module.kept):
        for part in KEY_VALUE if kept is None else kept:
            names.append(f".{i}.{part}" if kept is None else f"_{part}.{i}")
            shapes.append(key_shape(language.layers[i], config) if kept is None else kept[part])
            axes.append({0: "batch_size", **({2: "past_sequence_length"} if kept is None else {})})
    positions = torch.arange(PAST, TOTAL).expand(BATCH, LENGTH).contiguous()
    position_axes = {0: "batch_size", 1: "sequence_length"}
    if hasattr(model.model, "get_rope_index"):
        positions = positions.expand(3, BATCH, LENGTH).contiguous()
        position_axes = {1: "batch_size", 2: "sequence_length"}
    hidden = torch.rand(BATCH, LENGTH, (1 + n_inner) * config.hidden_size)
    of_layers = layer_inputs(config)
    is_stack = not (module.window or of_layers or n_inner) and all(kept is None for kept in module.kept)
    layers = [torch.rand(BATCH, LENGTH, *of_layers)] if of_layers else []
    return Graph(
        module,
        (
            hidden,
            torch.ones(BATCH, TOTAL, dtype=torch.long),
            positions,
            torch.tensor(2),
            *layers,
            *(torch.rand(BATCH, *s) for s in shapes),
        ),
        (
            "inputs_embeds",
            "attention_mask",
            "position_ids",
            "num_logits_to_keep",
            *(["per_layer_inputs"] if layers else []),
            *(f"past_key_values{name}" if name.startswith(".") else f"past{name}" for name in names),
        ),
        ("logits", *(f"present{name}" for name in names)),
        (
            {0: "batch_size", 1: "sequence_length"},
            {0: "batch_size", 1: "total_sequence_length"},
            position_axes,
            {},
            *([{0: "batch_size", 1: "sequence_length"}] if layers else []),
            *axes,
        ),
        "language.layers" if is_stack else None,
    )


def key_shape(layer: Any, config: Any) -> tuple[int, int, int]:
    """(heads, PAST, width) of a layer's keys and of its values; a family may say it for each layer, in `keys`."""
    heads, width = getattr(layer, "keys", None) or (config.num_key_value_heads, head_size(config))
    return heads, PAST, width


def head_size(config: Any) -> int:
    """Width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
