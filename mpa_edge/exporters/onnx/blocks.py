"""Weights in blocks of 4 bits, rounded so that what matters for the output keeps its value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

Array = NDArray[Any]
LEVELS = 15
"""Largest number of 4 bits."""
STRETCHES = tuple(LEVELS / (LEVELS + step) for step in (0.0, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0, 3.0))
"""Scales to start from, against the one that spans the block: a narrower grid cuts extremes and rounds less."""
FLOOR = 0.01
"""Least importance of an input, against the mean: texts are few, and another one may need it."""
COLUMNS = 256
"""Columns at once: their blocks fit a processor's cache."""


def layer_name(weight: str) -> str:
    """Layer of the language model that a weight of its graph belongs to.

    >>> layer_name("language.layers.0.mlp.down_proj.weight"), layer_name("head.weight")
    ('layers.0.mlp.down_proj', 'head')
    """
    return weight.removeprefix("language.").removesuffix(".weight")


class WeightedQuantizer(DefaultWeightOnlyQuantizer):
    """ONNX Runtime's own quantizer, with scales and zero points that minimize the weighted error.

    `importance` is the mean square of each input by layer; a layer that is not there has equal weights.
    """

    def __init__(self, config: DefaultWeightOnlyQuantConfig, importance: Mapping[str, Array]) -> None:
        super().__init__(config)
        self._importance = importance
        self._layer = ""

    def quantize_matmul(self, node: NodeProto, graph_stack: list[GraphProto]) -> list[NodeProto]:
        """Replace one product."""
        self._layer = layer_name(node.input[1])
        return list(super().quantize_matmul(node, graph_stack))

    def qbits_block_quant(self, weight: Array) -> tuple[Array, Array, Array]:
        """(inputs, outputs) -> bytes (outputs, blocks, size / 2), scales and packed zero points (outputs, blocks)."""
        size, (n_inputs, n_outputs) = self.config.block_size, weight.shape
        n_blocks = -(-n_inputs // size)
        importance = self._importance.get(self._layer, np.ones(n_inputs))
        importance = importance + FLOOR * importance.mean()
        padding = n_blocks * size - n_inputs
        weights = np.pad(weight.T, ((0, 0), (0, padding))).reshape(n_outputs, n_blocks, size).astype(np.float32)
        shares = np.pad(importance, (0, padding)).reshape(1, n_blocks, size).astype(np.float32)
        parts = [rounded(weights[i : i + COLUMNS], shares) for i in range(0, n_outputs, COLUMNS)]
        numbers, scales, zeros = (np.concatenate(part) for part in zip(*parts, strict=True))
        zeros = np.pad(zeros, ((0, 0), (0, n_blocks % 2)))
        return packed(numbers), scales.astype(weight.dtype), packed(zeros)


def packed(numbers: Array) -> Array:
    """Two numbers of 4 bits a byte, the first in the lower half."""
    return numbers[..., ::2] | numbers[..., 1::2] << 4


def rounded(weights: Array, importance: Array) -> tuple[Array, Array, Array]:
    """Blocks in the last axis -> numbers (0..15), scale and zero point of each, with the least weighted square error.

    From each start, numbers and scale are fitted in turn: the scale by least squares, the zero point to the mean error.
    """
    low = np.minimum(weights.min(-1, keepdims=True), 0)
    high = np.maximum(weights.max(-1, keepdims=True), 0)
    spanning = np.maximum((high - low) / LEVELS, np.float32(1e-12))
    total = np.maximum(importance.sum(-1, keepdims=True), np.float32(1e-20))
    best = np.full_like(low, np.inf)
    scales, zeros = spanning.copy(), np.zeros_like(low)
    for stretch in STRETCHES:
        scale = spanning * np.float32(stretch)
        zero = np.clip(np.rint(-low / scale), 0, LEVELS)
        for _ in range(2):
            steps = np.clip(np.rint(weights / scale) + zero, 0, LEVELS) - zero
            weighted = importance * steps
            fitted = (weighted * weights).sum(-1, keepdims=True) / np.maximum(
                (weighted * steps).sum(-1, keepdims=True), np.float32(1e-20)
            )
            scale = np.where(fitted > 0, fitted, scale)
            error = weights - scale * steps
            loss = (importance * error * error).sum(-1, keepdims=True)
            better = loss < best
            best, scales, zeros = (
                np.where(better, new, old) for new, old in ((loss, best), (scale, scales), (zero, zeros))
            )
            zero = np.clip(zero - np.rint((importance * error).sum(-1, keepdims=True) / total / scale), 0, LEVELS)
    numbers = np.clip(np.rint(weights / scales) + zeros, 0, LEVELS)
    return numbers.astype(np.uint8), scales[..., 0], zeros[..., 0].astype(np.uint8)
