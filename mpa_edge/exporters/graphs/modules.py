"""Layers of transformers in the form that ONNX quantizers and ONNX Runtime know: same numbers, another wording."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "mpa_edge_grouped"
LARGE_NEGATIVE = -1.0e4
"""Added where attention must not look: exp() of it is 0, and it still fits fp16."""


class MatMul(nn.Module):
    """nn.Linear with its weight stored as (in, out): one MatMul with a constant, which is what quantizers look for."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().T.contiguous(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


class RootMeanSquareNorm(nn.Module):
    """RMSNorm as a division by a root: the pattern that ONNX Runtime fuses into one kernel; rsqrt is not."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.epsilon = float(norm.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden) -> the same."""
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weight


def grouped_attention(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """Attention in which the heads of a group read one key and value where they lie, without a repeated copy of both.

    query (B, H, S, D), key and value (B, K, T, D) with H = K * group, mask added, (B, 1, S or 1, T) -> (B, S, H, D).
    """
    batch, heads, length, size = query.shape
    n_keys = key.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    grouped = (query * scale).reshape(batch, n_keys, (heads // n_keys) * length, size)
    scores = torch.matmul(grouped, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores.reshape(batch, n_keys, heads // n_keys, length, -1) + attention_mask[:, :, None]
    weights = scores.softmax(-1).reshape(batch, n_keys, (heads // n_keys) * length, -1)
    seen = torch.matmul(weights, value).reshape(batch, heads, length, size)
    return seen.transpose(1, 2), None


AttentionInterface.register(ATTENTION, grouped_attention)


def reworded(module: nn.Module) -> nn.Module:
    """The same module with every linear layer, RMSNorm and attention in ONNX's wording, changed in place."""
    for part in module.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation = ATTENTION
        for name, child in part.named_children():
            if type(child) is nn.Linear:
                setattr(part, name, MatMul(child))
            elif type(child).__name__.endswith("RMSNorm"):
                setattr(part, name, RootMeanSquareNorm(child))
    return module


def added_mask(visible: Tensor) -> Tensor:
    """Boolean mask -> what is added to attention scores."""
    return torch.where(visible, 0.0, LARGE_NEGATIVE)
