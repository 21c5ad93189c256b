"""The language model of an ONNX export, one step at a time; its key-value cache lives outside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_edge.errors import MpaError
from mpa_edge.vlm.onnxruntime.sessions import Graph, has_dynamic_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Cache = dict[str, NDArray[Any]]

PAST, PRESENT = "past_key_values.", "present."
N_LOGITS = "num_logits_to_keep"
REQUIRED = ("inputs_embeds", "attention_mask", "position_ids")
SIZES = ("embeds_size", "num_hidden_layers", "num_key_value_heads", "head_dim")


class Decoder(Graph):
    """decoder_model_merged.onnx: embeddings in, logits out."""

    def __init__(self, path: Path, threads: int, text: dict[str, Any]) -> None:
        """`text`: sizes of the language model. MpaError where the graph has others."""
        super().__init__(path, threads)
        self.cache_inputs = [name.replace(PRESENT, PAST) for name in self.outputs[1:]]
        # exports made before there was DeepStack do not say embeds_size
        expected = [{"embeds_size": text.get("hidden_size"), **text}.get(key) for key in SIZES]
        if not {*REQUIRED, *self.cache_inputs} <= set(self.inputs) or self._sizes() != expected:
            raise MpaError(f"{path} does not fit artifact.json: copy the whole folder, or export again")
        # whether the values of a row do not depend on the other rows and tokens of the same run
        self.rows_are_independent = not has_dynamic_ranges(path)
        # Qwen's positions: time, row and column
        self.three_axes = len(self.inputs["position_ids"].shape) == 3
        self.constants: dict[str, NDArray[Any]] = {}
        if N_LOGITS in self.inputs:
            self.constants[N_LOGITS] = np.ones([1] * len(self.inputs[N_LOGITS].shape), np.int64)

    def _sizes(self) -> list[Any]:
        """Of the graph, in the order of `SIZES`."""
        first = self.inputs[self.cache_inputs[0]].shape if self.cache_inputs else [None] * 4
        return [self.inputs["inputs_embeds"].shape[2], len(self.cache_inputs) // 2, first[1], first[3]]

    def empty_cache(self, batch: int) -> Cache:
        """A cache of no tokens: input name -> (batch, heads, 0, head size)."""
        shapes = {name: self.inputs[name].shape for name in self.cache_inputs}
        return {name: np.zeros((batch, shape[1], 0, shape[3]), self.dtypes[name]) for name, shape in shapes.items()}

    def step(
        self, embeds: NDArray[Any], mask: NDArray[np.int64], positions: NDArray[np.int64], cache: Cache
    ) -> tuple[NDArray[np.float32], Cache]:
        """(B, S, hidden), (B, P + S), (B, S) or (3, B, S), cache of P -> (B, vocabulary), cache of P + S."""
        feeds = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions, **self.constants, **cache}
        logits, *present = self.run(feeds)
        last: NDArray[np.float32] = logits[:, -1].astype(np.float32, copy=False)
        return last, dict(zip(self.cache_inputs, present, strict=True))


def first_tokens(cache: Cache, n: int) -> Cache:
    """The cache of a prompt's first `n` tokens."""
    return {name: np.ascontiguousarray(value[:, :, :n]) for name, value in cache.items()}


def mrope_positions(ids: Sequence[int], image_id: int, grid: Sequence[int]) -> NDArray[np.int64]:
    """(3, n) time, row and column of each token of a prompt with one image; in text all three are the same.

    `grid` is (frames, rows, columns) of the image's tokens, patches already merged. After the image the count continues
    from its largest coordinate. Source: Wang et al. 2024, "Qwen2-VL", section 2.1, figure 3.

    >>> mrope_positions([7, 9, 9, 9, 9, 7], 9, (1, 2, 2)).tolist()
    [[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]]
    """
    first, n_image = list(ids).index(image_id), int(np.prod(grid))
    image = np.indices(tuple(grid)).reshape(3, -1) + first
    before = np.broadcast_to(np.arange(first), (3, first))
    n_after = len(ids) - first - n_image
    after = np.broadcast_to(np.arange(n_after) + first + max(grid), (3, n_after))
    return np.concatenate([before, image, after], axis=1).astype(np.int64)


def left_padded(rows: Sequence[NDArray[np.int64]], length: int) -> NDArray[np.int64]:
    """Positions of shape (n,) as (B, length), or (3, n) as (3, B, length). Padding gets 1; it is masked out anyway.

    >>> left_padded([np.array([0, 1])], 3).tolist()
    [[1, 0, 1]]
    """
    padded = [np.pad(row, [(0, 0)] * (row.ndim - 1) + [(length - row.shape[-1], 0)], constant_values=1) for row in rows]
    return np.stack(padded, axis=-2)
