"""The graphs of an ONNX export in onnxruntime: vision encoder and decoder. Errors are one line."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from mpa_edge.errors import MpaError, NotFiniteError
from mpa_edge.vlm.onnxruntime.providers import ERRORS_ONLY, Execution, one_line, refusal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpa_edge.types import Pixels

    Cache = dict[str, NDArray[Any]]

DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
PAST, PRESENT = "past_key_values.", "present."
# of states that do not grow with the tokens: past_conv.0, present_conv.0
PAST_STATE, PRESENT_STATE = "past_", "present_"
N_LOGITS = "num_logits_to_keep"
LAYER_INPUTS = "per_layer_inputs"
REQUIRED = ("inputs_embeds", "attention_mask", "position_ids")
SIZES = ("embeds_size", "num_hidden_layers", "num_key_value_heads", "head_dim")


ON_CPU = Execution()


class Graph:
    """One ONNX file. Its weights may lie in files beside it, never outside its folder: onnxruntime enforces that."""

    def __init__(self, path: Path, threads: int, execution: Execution = ON_CPU) -> None:
        """MpaError where the file is damaged, of a newer format, names weights outside its folder, or is refused."""
        self.path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = ERRORS_ONLY
        # memory plans help where shapes repeat; here every token has its own shapes, and the plans took 0.3 GB
        options.enable_mem_pattern = False
        # vision encoder, embedding and decoder take turns: a pool that spins after its work takes cores from the next
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session: Any = execution.session(str(path), options)
        except MpaError:
            raise
        except Exception as error:  # onnxruntime's errors have no common base class
            if execution.accelerator != "cpu":
                raise refusal(path, execution, error) from error
            raise MpaError(
                f"cannot load {path} ({one_line(error)}): copy the whole folder, or rerun mpa-edge export"
            ) from error
        self.inputs = {entry.name: entry for entry in self.session.get_inputs()}
        self.outputs = [entry.name for entry in self.session.get_outputs()]
        self.run_options: onnxruntime.RunOptions | None = None
        self.n_runs = 0
        self.dtypes = {name: DTYPES.get(entry.type, np.float32) for name, entry in self.inputs.items()}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the order of `self.outputs`, without a copy. Inputs are cast to the graph's types.

        MpaError where the run fails, also at an input that the graph does not have.
        """
        dtypes = self.dtypes
        self.n_runs += 1
        typed = {name: array.astype(dtypes.get(name, array.dtype), copy=False) for name, array in feeds.items()}
        try:
            outputs: list[NDArray[Any]] = self.session.run(None, typed, self.run_options)
        except Exception as error:
            raise MpaError(f"{self.path} failed ({one_line(error)}): free memory, or rerun mpa-edge export") from error
        return outputs

    def close(self) -> None:
        """Free the weights; safe to call twice."""
        self.session = None


class VisionEncoder(Graph):
    """Images to the embeddings that take their place in the prompt."""

    def __init__(self, path: Path, threads: int, execution: Execution = ON_CPU) -> None:
        super().__init__(path, threads, execution)
        # free the memory of an image before the decoder starts: 140 MB a tile of SmolVLM-256M, at no cost in time
        self.run_options = onnxruntime.RunOptions()
        self.run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def encode(self, pixels: Pixels) -> NDArray[np.float32]:
        """Arrays of one image, by input name -> (image tokens, hidden). An image in tiles is encoded tile by tile.

        All tiles at once would take as long, and the memory of all of them.
        """
        arrays = {}
        for name in self.inputs:
            # Qwen2-VL's graph says grid_thw where its image processor says image_grid_thw, Gemma's pixel_position_ids
            # for image_position_ids
            names = (name, f"image_{name}", name.replace("pixel_", "image_"))
            key = next((one for one in names if one in pixels), None)
            if key is None:
                raise MpaError(
                    f"{self.path} wants '{name}', which the image processor does not make: rerun mpa-edge export"
                )
            arrays[name] = pixels[key]
        features = [self.run(tile)[0] for tile in tiles(arrays)]
        rows = np.concatenate([found.reshape(-1, found.shape[-1]) for found in features])
        if not np.isfinite(rows).all():
            raise NotFiniteError(self.path, "vision")
        return rows.astype(np.float32, copy=False)


def tiles(pixels: Pixels) -> Iterator[Pixels]:
    """One tile at a time: (1, N, 3, H, W) with its mask, or (N, 3, H, W). Other shapes are one image, in patches.

    >>> [tile["pixel_values"].shape for tile in tiles({"pixel_values": np.zeros((1, 2, 3, 8, 8))})]
    [(1, 1, 3, 8, 8), (1, 1, 3, 8, 8)]
    """
    axis = {5: 1, 4: 0}.get(pixels["pixel_values"].ndim)
    if axis is None:
        yield pixels
        return
    for i in range(pixels["pixel_values"].shape[axis]):
        here = (slice(None),) * axis + (slice(i, i + 1),)
        yield {name: array[here] for name, array in pixels.items()}


class Decoder(Graph):
    """decoder_model_merged.onnx: embeddings in, logits out."""

    def __init__(self, path: Path, threads: int, text: dict[str, Any], execution: Execution = ON_CPU) -> None:
        """`text`: sizes of the language model. MpaError where the graph has others."""
        super().__init__(path, threads, execution)
        self.cache_inputs = [
            name.replace(PRESENT, PAST).replace(PRESENT_STATE, PAST_STATE) for name in self.outputs[1:]
        ]
        sizes: list[Any] = []
        if {*REQUIRED, *self.cache_inputs} <= set(self.inputs):
            keys = [self.inputs[name].shape for name in self.cache_inputs if name.startswith(PAST)]
            layers = {name.split(".")[1] for name in self.cache_inputs}
            first = keys[0] if keys else [None] * 4
            sizes = [self.inputs["inputs_embeds"].shape[2], len(layers), first[1], first[3]]
        # exports made before there was DeepStack do not say embeds_size
        if sizes != [{"embeds_size": text.get("hidden_size"), **text}.get(key) for key in SIZES]:
            raise MpaError(f"{path} does not fit artifact.json: copy the whole folder, or rerun mpa-edge export")
        # whether the values of a row do not depend on the other rows and tokens of the same run
        self.rows_are_independent = not has_dynamic_ranges(path)
        # whether the cache of a prompt's first tokens is a part of the cache of all
        self.can_rewind = all(name.startswith(PAST) for name in self.cache_inputs)
        # Qwen's positions: time, row and column
        self.three_axes = len(self.inputs["position_ids"].shape) == 3
        self.constants: dict[str, NDArray[Any]] = {}
        if N_LOGITS in self.inputs:
            self.constants[N_LOGITS] = np.ones([1] * len(self.inputs[N_LOGITS].shape), np.int64)

    def empty_cache(self, batch: int) -> Cache:
        """A cache of no tokens: input name -> (batch, heads, 0, head size), or a state of zeros."""
        cache = {}
        for name in self.cache_inputs:
            sizes = [size if isinstance(size, int) else 0 for size in self.inputs[name].shape[1:]]
            cache[name] = np.zeros((batch, *sizes), self.dtypes[name])
        return cache

    def step(
        self, embeds: NDArray[Any], mask: NDArray[np.int64], positions: NDArray[np.int64], cache: Cache
    ) -> tuple[NDArray[np.float32], Cache]:
        """(B, S, hidden), (B, P + S), (B, S) or (3, B, S), cache of P -> (B, vocabulary), cache of P + S."""
        feeds = {"attention_mask": mask, "position_ids": positions, **self._embeds(embeds), **self.constants, **cache}
        logits, *present = self.run(feeds)
        last: NDArray[np.float32] = logits[:, -1].astype(np.float32, copy=False)
        return last, dict(zip(self.cache_inputs, present, strict=True))

    def _embeds(self, embeds: NDArray[Any]) -> Cache:
        """Embeddings of tokens, and those of each layer behind them, as the graph takes them."""
        if LAYER_INPUTS not in self.inputs:
            return {"inputs_embeds": embeds}
        width = self.inputs["inputs_embeds"].shape[2]
        of_layers = embeds[..., width:].reshape(*embeds.shape[:2], *self.inputs[LAYER_INPUTS].shape[2:])
        return {"inputs_embeds": embeds[..., :width], LAYER_INPUTS: of_layers}

    def read(self, embeds: NDArray[Any], positions: NDArray[np.int64], n_logits: int) -> NDArray[np.float32]:
        """(1, S, hidden), (1, S) or (3, 1, S) -> (n_logits, vocabulary) of the last tokens, in one run."""
        feeds = {**self._embeds(embeds), "attention_mask": np.ones((1, embeds.shape[1]), np.int64)}
        counts = {name: np.full_like(one, n_logits) for name, one in self.constants.items()}
        logits = self.run(feeds | {"position_ids": positions, **counts, **self.empty_cache(1)})[0]
        last: NDArray[np.float32] = logits[0, -n_logits:].astype(np.float32, copy=False)
        return last


def has_dynamic_ranges(path: Path) -> bool:
    """Whether a graph computes the range of its int8 activations at each run, over all its rows together.

    A value then depends on what else is computed in the same run. Found by the operators' names.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"DynamicQuantize") >= 0


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
