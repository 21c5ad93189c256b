"""Qwen3.5: Qwen3-VL's tower; decoder layers with a recurrent state in the place of keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpa_edge.exporters.graphs import qwen3_vl
from mpa_edge.exporters.graphs.modules import States

vision = qwen3_vl.vision
FLOAT = 1
"""Float32 in ONNX."""


class GatedDelta(nn.Module):
    """A gated delta net with ONNX Runtime's operator for the recurrence: exact for any number of tokens.

    Yang et al. 2024, "Gated Delta Networks", equation 10.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.queries_keys_values, self.gate = layer.in_proj_qkv, layer.in_proj_z
        self.rate, self.decay = layer.in_proj_b, layer.in_proj_a
        self.out_proj, self.norm = layer.out_proj, layer.norm
        self.taps = nn.Parameter(layer.conv1d.weight.detach()[:, 0].T.contiguous(), requires_grad=False)
        self.shift = layer.dt_bias
        self.speed = nn.Parameter(-layer.A_log.detach().exp(), requires_grad=False)
        self.n_keys, self.key_size = layer.num_k_heads, layer.head_k_dim
        self.n_values, self.value_size = layer.num_v_heads, layer.head_v_dim
        self.layer = layer.layer_idx
        self.kept = {
            "conv": (len(self.taps) - 1, layer.conv_dim),
            "recurrent": (self.n_values, self.key_size, self.value_size),
        }

    def forward(self, hidden_states: Tensor, cache_params: States, attention_mask: Tensor, **_: Any) -> Tensor:
        """(B, S, hidden), states, (B, S) of 0 and 1 -> (B, S, hidden). Padding comes first and leaves no trace."""
        conv, recurrent = cache_params.kept[self.layer]
        hidden = hidden_states * attention_mask[:, :, None].to(hidden_states.dtype)
        batch, length, _ = hidden.shape
        before = torch.cat([conv, self.queries_keys_values(hidden)], 1)
        mixed = sum(before[:, i : i + length] * tap for i, tap in enumerate(self.taps))
        n_keys = self.n_keys * self.key_size
        query, key, value = nn.functional.silu(mixed).split([n_keys, n_keys, self.n_values * self.value_size], -1)
        decay = self.speed * nn.functional.softplus(self.decay(hidden) + self.shift)
        seen, recurrent = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::LinearAttention",
            (self._unit(query), self._unit(key), value, recurrent, decay, self.rate(hidden).sigmoid()),
            {"q_num_heads": self.n_values, "kv_num_heads": self.n_values, "update_rule": "gated_delta"},
            dtypes=(FLOAT, FLOAT),
            shapes=(value.shape, recurrent.shape),
            version=1,
        )
        cache_params.kept[self.layer] = (before[:, length:], recurrent)
        seen = self.norm(
            seen.reshape(-1, self.value_size), self.gate(hidden).reshape(-1, self.value_size)
        ).reshape(batch, length, -1)
        return self.out_proj(seen)

    def _unit(self, rows: Tensor) -> Tensor:
        """(B, S, key heads x size) -> each head of length 1, repeated for its value heads."""
        batch, length, _ = rows.shape
        heads = rows.reshape(batch, length, self.n_keys, 1, self.key_size)
        heads = heads / torch.sqrt(heads.pow(2).sum(-1, keepdim=True) + 1e-6)
        group = self.n_values // self.n_keys
        return heads.expand(-1, -1, -1, group, -1).reshape(batch, length, self.n_values * self.key_size)


def language(decoder: Any) -> None:
    """Put the layers that are this family's own into their form for ONNX, in place."""
    for layer in decoder.layers:
        if layer.block_type == "linear_attention":
            layer.linear_attn = GatedDelta(layer.linear_attn)
