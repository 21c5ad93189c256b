"""ONNX graphs under onnxruntime: opened safely, fed with the number types that they want, errors in one line."""

from __future__ import annotations

import mmap
import os
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
# how onnxruntime 1.31 refuses weights that are absolute, above the folder, or behind a link out of it
OUTSIDE = re.compile(
    r"escapes model directory|absolute path|symbolic link|outside (the directory|model)", re.IGNORECASE
)
PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


def usable_threads(*wanted: int | None) -> int:
    """The first thread count that is given, else one for each core that this process may use."""
    return next((count for count in wanted if count), len(os.sched_getaffinity(0)))


def one_line(error: BaseException) -> str:
    """What a library said, without its line breaks and its own prefix.

    >>> one_line(ValueError("[ONNXRuntimeError] : 1 : FAIL : Load model failed:\\n  no such node"))
    'Load model failed: no such node'
    """
    said = PREFIX.sub("", " ".join(str(error).split()))
    return said[:300] or type(error).__name__


def options(threads: int) -> onnxruntime.SessionOptions:
    """How our sessions run: one pool of `threads`, one operator after the other, only errors on the log."""
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    made.inter_op_num_threads = 1
    made.log_severity_level = ERRORS_ONLY
    # a plan of the memory is of use where shapes come again; here each token has its own, and plans took 0.3 GB
    made.enable_mem_pattern = False
    # vision encoder, embedding and decoder take turns: a pool that spins after its work takes cores from the next
    made.add_session_config_entry("session.force_spinning_stop", "1")
    return made


class Graph:
    """One ONNX file. Its weights may lie in files beside it, never outside its folder: onnxruntime sees to that."""

    def __init__(self, path: Path, threads: int) -> None:
        """MpaError where the file is damaged, of a newer format, or names weights outside its folder."""
        self.path = path
        try:
            self.session = onnxruntime.InferenceSession(str(path), options(threads), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no class of their own
            if OUTSIDE.search(str(error)):
                raise MpaError(
                    f"{path} wants weights that are not inside its folder: do not use this export"
                ) from error
            raise MpaError(f"cannot load {path} ({one_line(error)}): copy the whole folder, or export again") from error
        self.inputs = {entry.name: entry for entry in self.session.get_inputs()}
        self.outputs = [entry.name for entry in self.session.get_outputs()]
        self.run_options: onnxruntime.RunOptions | None = None
        self.dtypes = {name: DTYPES.get(entry.type, np.float32) for name, entry in self.inputs.items()}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the order of `self.outputs`. Inputs are cast to the graph's types; one too many is an error.

        onnxruntime hands its outputs over as arrays without a copy and takes them back the same way.
        """
        dtypes = self.dtypes
        typed = {name: array.astype(dtypes.get(name, array.dtype), copy=False) for name, array in feeds.items()}
        try:
            found: list[NDArray[Any]] = self.session.run(None, typed, self.run_options)
        except Exception as error:
            raise MpaError(f"{self.path} failed ({one_line(error)}): free memory, or export again") from error
        return found


class VisionEncoder(Graph):
    """Pictures to the embeddings that stand in the prompt."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(path, threads)
        # what one picture needed goes back before the decoder starts: 140 MB a tile of SmolVLM-256M, and no time
        self.run_options = onnxruntime.RunOptions()
        self.run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def encode(self, pixels: Pixels) -> NDArray[np.float32]:
        """Arrays of one picture, by input name -> (image tokens, hidden). Tile by tile, where it is cut in tiles.

        All tiles at once would take no less time, and the memory of each of them.
        """
        arrays = {name: self._array(name, pixels) for name in self.inputs}
        features = [self.run(tile)[0] for tile in tiles(arrays)]
        rows = [found.reshape(-1, found.shape[-1]) for found in features]
        return np.concatenate(rows).astype(np.float32, copy=False)

    def _array(self, name: str, pixels: Pixels) -> NDArray[Any]:
        # Qwen2-VL's graph says grid_thw where its image processor says image_grid_thw
        for key in (name, f"image_{name}"):
            if key in pixels:
                return pixels[key]
        raise MpaError(f"{self.path} wants '{name}', which the image processor does not make: export again")


def tiles(pixels: Pixels) -> Iterator[Pixels]:
    """One after the other: (1, N, 3, H, W) with its mask, or (N, 3, H, W). Other shapes are one picture, in patches.

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
    """Whether a graph finds the range of its int8 activations anew at each run, over all rows of it together.

    Then a number depends on what else is computed in the same run. Read from the names of the operators.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"DynamicQuantize") >= 0
