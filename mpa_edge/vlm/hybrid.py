"""An ONNX vision encoder in front of a GGUF language model: each half in the runtime that is faster at it."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import MpaError, missing_package
from mpa_edge.vlm.llama_cpp.language import Piece
from mpa_edge.vlm.llama_cpp.model import LlamaCppVLM
from mpa_edge.vlm.llama_cpp.vision import EncodedImage
from mpa_edge.vlm.pixels import prepare

if TYPE_CHECKING:
    from PIL.Image import Image

    from mpa_edge.types import Pixels


class HybridVLM(LlamaCppVLM):
    """Answers one request at a time: ONNX Runtime encodes the image, llama.cpp reads the embeddings and answers."""

    def _load_vision(self) -> Any:
        try:
            from mpa_edge.vlm.onnxruntime.providers import choose
            from mpa_edge.vlm.onnxruntime.sessions import VisionEncoder
        except ModuleNotFoundError as error:
            raise missing_package(str(error.name).partition(".")[0], "onnx") from error
        self.execution = choose((*self.accelerators, "cpu"), self.provider_options)
        return VisionEncoder(self.file("vision"), self.language.threads, self.execution)

    def look(self, image: Image, pixels: Pixels | None = None) -> EncodedImage:
        """Encode an image, or `pixels` in its place. MpaError where embeddings and image tokens differ in number."""
        image_id = self.artifact.tokens.image_id
        prepared = prepare(self.artifact.image, image)
        ids = self.language.tokenize(prepared.expansion)
        pixels = prepared.pixels if pixels is None else pixels
        started = time.perf_counter()
        features = self.vision.encode(pixels)
        vision_s = time.perf_counter() - started
        if features.shape != (n := ids.count(image_id), self.language.hidden):
            found = f"embeddings of shape {features.shape} for {n} tokens of {self.language.hidden}"
            raise MpaError(f"{self.folder}: the vision encoder gives {found}: rerun mpa-edge export")
        grid = None
        for name, array in pixels.items():
            if name.endswith("grid_thw"):  # Qwen2-VL has a position for each row and column
                merge = self.artifact.image["merge_size"]
                grid = int(array[0][1]) // merge, int(array[0][2]) // merge
        pieces, start = [], 0
        for is_image, group in itertools.groupby(ids, lambda token: token == image_id):
            tokens = tuple(group)
            if is_image:
                pieces.append(Piece(tokens, features[start : start + len(tokens)], grid))
                start += len(tokens)
            else:
                pieces.append(Piece(tokens))
        return EncodedImage(tuple(pieces), vision_s, pixels)
