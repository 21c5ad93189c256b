"""ONNX graphs in onnxruntime: opened safely, fed with the data types that they expect, errors in one line."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from mpa_edge.errors import MpaError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpa_edge.types import Pixels

DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
ERRORS_ONLY = 3
PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


def one_line(error: BaseException) -> str:
    """The message of a library's error, without line breaks and onnxruntime's prefix.

    >>> one_line(ValueError("[ONNXRuntimeError] : 1 : FAIL : Load model failed:\\n  no such node"))
    'Load model failed: no such node'
    """
    return PREFIX.sub("", " ".join(str(error).split()))[:300] or type(error).__name__


def options(threads: int) -> onnxruntime.SessionOptions:
    """Session options: one pool of `threads`, one operator at a time, only errors in the log."""
    found = onnxruntime.SessionOptions()
    found.intra_op_num_threads = threads
    found.inter_op_num_threads = 1
    found.log_severity_level = ERRORS_ONLY
    # memory plans help where shapes repeat; here every token has its own shapes, and the plans took 0.3 GB
    found.enable_mem_pattern = False
    # vision encoder, embedding and decoder take turns: a pool that spins after its work takes cores from the next
    found.add_session_config_entry("session.force_spinning_stop", "1")
    return found


class Graph:
    """One ONNX file. Its weights may lie in files beside it, never outside its folder: onnxruntime enforces that."""

    def __init__(self, path: Path, threads: int) -> None:
        """MpaError where the file is damaged, of a newer format, or names weights outside its folder."""
        self.path = path
        try:
            self.session: Any = onnxruntime.InferenceSession(
                str(path), options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common base class
            raise MpaError(f"cannot load {path} ({one_line(error)}): copy the whole folder, or export again") from error
        self.inputs = {entry.name: entry for entry in self.session.get_inputs()}
        self.outputs = [entry.name for entry in self.session.get_outputs()]
        self.run_options: onnxruntime.RunOptions | None = None
        self.dtypes = {name: DTYPES.get(entry.type, np.float32) for name, entry in self.inputs.items()}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the order of `self.outputs`, without a copy. Inputs are cast to the graph's types.

        MpaError where the run fails, also at an input that the graph does not have.
        """
        dtypes = self.dtypes
        typed = {name: array.astype(dtypes.get(name, array.dtype), copy=False) for name, array in feeds.items()}
        try:
            outputs: list[NDArray[Any]] = self.session.run(None, typed, self.run_options)
        except Exception as error:
            raise MpaError(f"{self.path} failed ({one_line(error)}): free memory, or export again") from error
        return outputs

    def close(self) -> None:
        """Free the weights; safe to call twice."""
        self.session = None


class VisionEncoder(Graph):
    """Images to the embeddings that take their place in the prompt."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(path, threads)
        # free the memory of an image before the decoder starts: 140 MB a tile of SmolVLM-256M, at no cost in time
        self.run_options = onnxruntime.RunOptions()
        self.run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def encode(self, pixels: Pixels) -> NDArray[np.float32]:
        """Arrays of one image, by input name -> (image tokens, hidden). An image in tiles is encoded tile by tile.

        All tiles at once would take as long, and the memory of all of them.
        """
        arrays = {}
        for name in self.inputs:
            # Qwen2-VL's graph says grid_thw where its image processor says image_grid_thw
            key = name if name in pixels else f"image_{name}"
            if key not in pixels:
                raise MpaError(f"{self.path} wants '{name}', which the image processor does not make: export again")
            arrays[name] = pixels[key]
        features = [self.run(tile)[0] for tile in tiles(arrays)]
        rows = [found.reshape(-1, found.shape[-1]) for found in features]
        return np.concatenate(rows).astype(np.float32, copy=False)


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


def has_dynamic_ranges(path: Path) -> bool:
    """Whether a graph computes the range of its int8 activations at each run, over all its rows together.

    A value then depends on what else is computed in the same run. Found by the operators' names.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"DynamicQuantize") >= 0
