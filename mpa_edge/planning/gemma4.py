"""Sizes of Gemma 4, whose layers differ: windows and full attention, shared keys and values, embeddings of each layer.

Layer sizes follow models/gemma4/modeling_gemma4.py of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "head_dim": 64,
    "patch_size": 16,
}
AUDIO = {"hidden_size": 1024, "num_hidden_layers": 12, "output_proj_dims": 1536}
SUBSAMPLED = 1024
"""Inputs of the audio tower's first linear layer."""


def mean_layer(text: Mapping[str, Any]) -> tuple[int, int, int]:
    """(query, key_value, feed-forward) widths of equal layers with as many parameters, and a cache as large."""
    layers = int(text["num_hidden_layers"])
    kinds = text.get("layer_types") or ["full_attention" if (i + 1) % 6 == 0 else "sliding" for i in range(layers)]
    small, large = int(text.get("head_dim") or 256), wide_head(text)
    heads, key_heads = int(text["num_attention_heads"]), int(text.get("num_key_value_heads") or 4)
    widths = [large if kind == "full_attention" else small for kind in kinds]
    own = layers - int(text.get("num_kv_shared_layers") or 0)
    query, key_value = heads * sum(widths) / layers, key_heads * sum(widths[:own]) / layers
    doubled = layers - own if text.get("use_double_wide_mlp") else 0
    # what a layer's own embeddings pass through: three matrices as wide as they are
    ffn = int(text["intermediate_size"]) * (layers + doubled) / layers + layer_width(text)
    return round(query), round(key_value), round(ffn)


def wide_head(text: Mapping[str, Any]) -> int:
    """Head size of layers with full attention: config.json says it once, or for each layer."""
    of_layers = [one["head_dim"] for one in (text.get("per_layer_config") or {}).values() if "head_dim" in one]
    return int(text.get("global_head_dim") or (of_layers[0] if of_layers else 512))


def layer_width(text: Mapping[str, Any]) -> int:
    """Width of the embeddings of each layer."""
    return int(text.get("hidden_size_per_layer_input", 256))


def looked_up(config: Mapping[str, Any]) -> int:
    """Parameters that are stored, but no matrix of the answer: embeddings of each layer, and the audio encoder."""
    text, heard = config["text_config"], config.get("audio_config")
    words = int(text.get("vocab_size_per_layer_input") or text["vocab_size"])
    table = words * int(text["num_hidden_layers"]) * layer_width(text)
    if heard is None:
        return table
    audio = AUDIO | dict(heard)
    hidden, out = int(audio["hidden_size"]), int(audio["output_proj_dims"])
    # a layer: two feed-forward blocks of 8, attention of 5, a convolution of 3 square matrices
    ears = 24 * hidden**2 * int(audio["num_hidden_layers"])
    return table + ears + SUBSAMPLED * hidden + hidden * out + out * int(text["hidden_size"])
