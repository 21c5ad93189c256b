"""An ONNX vision encoder in front of a GGUF language model: each half in the runtime that is quicker at it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import MpaError, missing_package
from mpa_edge.vlm.clock import Clock
from mpa_edge.vlm.llama_cpp.answer import LlamaAnswers, Picture
from mpa_edge.vlm.llama_cpp.language import Piece
from mpa_edge.vlm.pixels import prepare

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from mpa_edge.types import Pixels


class HybridVLM(LlamaAnswers):
    """Answers one request at a time: ONNX Runtime sees the picture, llama.cpp reads its embeddings and speaks."""

    def __init__(self, folder: str | Path, *, name: str, threads: int | None = None) -> None:
        """Load an exported folder. MpaError where a runtime or a file is missing, or a file is damaged."""
        super().__init__(folder, name=name, threads=threads)
        self.vision: Any = self._or_close(self._load_vision)

    def _load_vision(self) -> Any:
        try:
            from mpa_edge.vlm.onnxruntime.sessions import VisionEncoder
        except ModuleNotFoundError as error:
            raise missing_package(str(error.name).partition(".")[0], "onnx") from error
        return VisionEncoder(self.file("vision"), self.language.threads)

    def look(self, image: Image, pixels: Pixels | None = None) -> Picture:
        """Encode a picture, or `pixels` in its place; MpaError where its embeddings and its tokens differ in number."""
        clock = Clock()
        prepared = prepare(self.artifact.image, image)
        ids = self.language.tokenize(prepared.expansion)
        given = prepared.pixels if pixels is None else pixels
        clock.lap()
        features = self.vision.encode(given)
        vision_s = clock.lap()
        if features.shape != (n := ids.count(self.artifact.tokens.image_id), self.language.hidden):
            found = f"embeddings of shape {features.shape} for {n} tokens of {self.language.hidden}"
            raise MpaError(f"{self.folder}: the vision encoder gives {found}: export again")
        pieces = tuple(_pieces(ids, self.artifact.tokens.image_id, features, self._grid(given)))
        return Picture(pieces, vision_s, given)

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        self.vision = None
        super().close()

    def _grid(self, pixels: Pixels) -> tuple[int, int] | None:
        """(rows, columns) of the picture's tokens where the language model has a position for each (Qwen2-VL)."""
        grids = [array for name, array in pixels.items() if name.endswith("grid_thw")]
        if not grids:
            return None
        _, rows, columns = (int(size) for size in grids[0][0])
        merged = self.artifact.image["merge_size"]
        return rows // merged, columns // merged


def _pieces(
    ids: list[int], image_id: int, features: NDArray[np.float32], grid: tuple[int, int] | None
) -> Iterator[Piece]:
    """Stretches of text and of embeddings, in turn."""
    start = 0
    for is_image, stretch in itertools.groupby(ids, lambda token: token == image_id):
        chosen = tuple(stretch)
        if is_image:
            yield Piece(chosen, features[start : start + len(chosen)], grid)
            start += len(chosen)
        else:
            yield Piece(chosen)
