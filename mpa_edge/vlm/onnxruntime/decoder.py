"""The language model of an ONNX export, one step at a time; its key-value cache lives outside the graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_edge.errors import MpaError
from mpa_edge.vlm.onnxruntime.sessions import Graph, has_dynamic_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Cache = dict[str, NDArray[Any]]

PAST, PRESENT = "past_key_values.", "present."
KEEP = "num_logits_to_keep"
WANTED = ("inputs_embeds", "attention_mask", "position_ids")


class Decoder(Graph):
    """decoder_model_merged.onnx: embeddings in, logits out."""

    def __init__(self, path: Path, threads: int, text: dict[str, Any]) -> None:
        """`text`: sizes of the language model. MpaError where the graph has others."""
        super().__init__(path, threads)
        self.cache_inputs = [name.replace(PRESENT, PAST) for name in self.outputs[1:]]
        if not {*WANTED, *self.cache_inputs} <= set(self.inputs) or self._sizes() != _sizes_of(text):
            raise MpaError(f"{path} does not fit artifact.json: copy the whole folder, or export again")
        # numbers do not depend on what else is computed in the same run
        self.rows_apart = not has_dynamic_ranges(path)
        # Qwen counts time, rows and columns
        self.three_axes = len(self.inputs["position_ids"].shape) == 3
        keep = [np.ones([1] * len(self.inputs[KEEP].shape), np.int64)] if KEEP in self.inputs else []
        self.always = dict.fromkeys([KEEP], keep[0]) if keep else {}

    def _sizes(self) -> dict[str, Any]:
        first = self.inputs[self.cache_inputs[0]].shape if self.cache_inputs else [None] * 4
        return {
            "embeds_size": self.inputs["inputs_embeds"].shape[2],
            "num_hidden_layers": len(self.cache_inputs) // 2,
            "num_key_value_heads": first[1],
            "head_dim": first[3],
        }

    def empty_cache(self, batch: int) -> Cache:
        """A cache with nothing in it: input name -> (batch, heads, 0, head size)."""
        shapes = {name: self.inputs[name].shape for name in self.cache_inputs}
        return {name: np.zeros((batch, shape[1], 0, shape[3]), self.dtypes[name]) for name, shape in shapes.items()}

    def step(
        self, embeds: NDArray[Any], mask: NDArray[np.int64], places: NDArray[np.int64], cache: Cache
    ) -> tuple[NDArray[np.float32], Cache]:
        """(B, S, hidden), (B, P + S), (B, S) or (3, B, S), cache of P -> (B, vocabulary), cache of P + S."""
        feeds = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": places, **self.always, **cache}
        logits, *present = self.run(feeds)
        last: NDArray[np.float32] = logits[:, -1].astype(np.float32, copy=False)
        return last, dict(zip(self.cache_inputs, present, strict=True))


def _sizes_of(text: dict[str, Any]) -> dict[str, Any]:
    # exports made before there was DeepStack do not say it
    sizes = {"embeds_size": text.get("hidden_size"), **text}
    return {key: sizes.get(key) for key in ("embeds_size", "num_hidden_layers", "num_key_value_heads", "head_dim")}


def first_tokens(cache: Cache, n: int) -> Cache:
    """The cache of a prompt's first `n` tokens."""
    return {name: np.ascontiguousarray(value[:, :, :n]) for name, value in cache.items()}
