"""Qwen3.5: Qwen3-VL's tower; decoder layers with a recurrent state in the place of keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpa_edge.exporters.graphs import qwen3_vl
from mpa_edge.exporters.graphs.modules import States

vision = qwen3_vl.vision
EPSILON = 1e-6
"""Added to the squared length of queries and keys, as transformers does."""
FLOAT = 1
"""Float32 in ONNX."""


class GatedDelta(nn.Module):
    """A gated delta net with ONNX Runtime's operator for the recurrence: exact for any number of tokens.

    Yang et al. 2024, "Gated Delta Networks", equation 10.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.in_proj_qkv, self.in_proj_z = layer.in_proj_qkv, layer.in_proj_z
        self.in_proj_b, self.in_proj_a = layer.in_proj_b, layer.in_proj_a
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
        before = torch.cat([conv, self.in_proj_qkv(hidden)], 1)
        mixed = sum(before[:, i : i + length] * tap for i, tap in enumerate(self.taps))
        n_keys = self.n_keys * self.key_size
        query, key, value = nn.functional.silu(mixed).split([n_keys, n_keys, self.n_values * self.value_size], -1)
        decay = self.speed * nn.functional.softplus(self.in_proj_a(hidden) + self.shift)
        seen, recurrent = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::LinearAttention",
            (self._unit(query), self._unit(key), value, recurrent, decay, self.in_proj_b(hidden).sigmoid()),
            {"q_num_heads": self.n_values, "kv_num_heads": self.n_values, "update_rule": "gated_delta"},
            dtypes=(FLOAT, FLOAT),
            shapes=(value.shape, recurrent.shape),
            version=1,
        )
        cache_params.kept[self.layer] = (before[:, length:], recurrent)
        gate = self.in_proj_z(hidden).reshape(-1, self.value_size)
        return self.out_proj(self.norm(seen.reshape(-1, self.value_size), gate).reshape(batch, length, -1))

    def _unit(self, rows: Tensor) -> Tensor:
        """(B, S, key heads x size) -> each head of length 1, repeated for its value heads."""
        batch, length, _ = rows.shape
        heads = rows.reshape(batch, length, self.n_keys, 1, self.key_size)
        # a mean, not a sum: what stays in fp32 in a 16-bit graph, as in an RMSNorm
        heads = heads / torch.sqrt(heads.pow(2).mean(-1, keepdim=True) + EPSILON / self.key_size) * self.key_size**-0.5
        group = self.n_values // self.n_keys
        return heads.expand(-1, -1, -1, group, -1).reshape(batch, length, self.n_values * self.key_size)


def language(decoder: Any) -> None:
    """Put the layers that are this family's own into their form for ONNX, in place."""
    for layer in decoder.layers:
        if layer.block_type == "linear_attention":
            layer.linear_attn = GatedDelta(layer.linear_attn)
