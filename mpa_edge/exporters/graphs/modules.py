"""Layers of transformers in the form that ONNX quantizers and ONNX Runtime recognize; the numbers are the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache

ATTENTION = "mpa_edge_grouped"
FROM_ZERO = ("Qwen3_5RMSNorm",)
"""Norms that add one to their weights."""
LARGE_NEGATIVE = -1.0e4
"""Added to the scores of masked positions: exp() of it is 0, and it still fits fp16."""


@dataclass(frozen=True)
class Graph:
    """What `torch.onnx.export` needs to know of one component."""

    module: nn.Module
    """Takes `sample`, gives one tensor for each of `outputs`; holds only the weights that it uses."""
    sample: tuple[Tensor, ...]
    """Inputs to trace with. Every dynamic axis is 2 or more here: the tracer takes a 1 for a constant."""
    inputs: tuple[str, ...]
    """Names of the inputs."""
    outputs: tuple[str, ...]
    """Names of the outputs."""
    axes: tuple[dict[int, str], ...]
    """For each input: dynamic axis -> its name."""
    stack: str | None = None
    """Path of the list of layers of which each takes only what the one before gives, wherever it stands in the list."""


class States(DynamicCache):
    """A cache in which some layers keep other tensors than keys and values of every token.

    Such a layer's module names them, and their shapes without the batch, in its attribute `kept`. It finds and leaves
    them in the cache's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, tuple[Tensor, ...]] = {}
        """Layer -> its tensors."""


class MatMul(nn.Module):
    """nn.Linear with its weight stored as (in, out): one MatMul with a constant, which quantizers look for."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().T.contiguous(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


class RootMeanSquareNorm(nn.Module):
    """RMSNorm as a division by a square root: the pattern that ONNX Runtime fuses into one kernel."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.epsilon = float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)
        self.weight = getattr(norm, "weight", None)  # some of Gemma's have none
        if type(norm).__name__ in FROM_ZERO:
            self.weight = nn.Parameter(1.0 + norm.weight.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden) -> the same."""
        y = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return y if self.weight is None else y * self.weight


def grouped_attention(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """Grouped-query attention without repeated copies of keys and values.

    query (B, H, S, D), key and value (B, K, T, D) with H = K * group, additive mask (B, 1, S or 1, T) -> (B, S, H, D).
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


def onnx_form(module: nn.Module) -> nn.Module:
    """Replace every linear layer, RMSNorm and attention by its form for ONNX, in place; returns the module."""
    for part in module.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation = ATTENTION
        for name, child in part.named_children():
            if type(child) is nn.Linear:
                setattr(part, name, MatMul(child))
            elif type(child).__name__.endswith("RMSNorm"):
                setattr(part, name, RootMeanSquareNorm(child))
    return module


def additive_mask(visible: Tensor) -> Tensor:
    """Boolean mask -> the mask that is added to attention scores."""
    return torch.where(visible, 0.0, LARGE_NEGATIVE)
