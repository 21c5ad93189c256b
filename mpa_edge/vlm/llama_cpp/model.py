"""A GGUF pair (language model and mmproj) as a VLM, through llama.cpp: no torch, no transformers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_edge.errors import MpaError
from mpa_edge.vlm.llama_cpp.answer import LlamaAnswers, Picture
from mpa_edge.vlm.llama_cpp.language import Piece
from mpa_edge.vlm.llama_cpp.vision import Projector
from mpa_edge.vlm.pixels import resized
from mpa_edge.vlm.pixels.common import scale

if TYPE_CHECKING:
    from PIL.Image import Image

    from mpa_edge.types import Pixels


class LlamaCppVLM(LlamaAnswers):
    """Answers with llama.cpp alone, one request at a time: its mtmd half sees the picture."""

    def __init__(self, folder: str | Path, *, name: str, threads: int | None = None) -> None:
        """Load an exported folder. MpaError where llama_cpp or a file is missing, or a file is damaged."""
        super().__init__(folder, name=name, threads=threads)
        self.kind = str(self.artifact.image["kind"])
        self.projector = self._or_close(self._load_projector)

    def _load_projector(self) -> Projector:
        any_size = self.kind.startswith("qwen")
        return Projector(self.file("mmproj"), self.language, self.artifact.tokens.image_id, any_size=any_size)

    def look(self, image: Image, pixels: Pixels | None = None) -> Picture:
        """Encode a picture; MpaError where `pixels` are given: llama.cpp makes its own."""
        if pixels is not None:
            raise MpaError("llama.cpp takes a picture, not pixels: leave them out, or trace a hybrid export")
        if self.kind == "internvl":
            return self._look_at_tiles(image)
        if stays_as_scaled(self.artifact.image):
            image = resized(self.artifact.image, image)
        return self.projector.look(image)

    def _look_at_tiles(self, image: Image) -> Picture:
        """InternVL: one tile after the other, as llama.cpp has other rules for how to cut a picture up."""
        first, last = (self.artifact.image[f"{side}_image_token"] for side in ("start", "end"))
        seen = [self.projector.look(tile) for tile in internvl_tiles(self.artifact.image, image)]
        rows = [piece.embeddings for picture in seen for piece in picture.pieces if piece.embeddings is not None]
        joined = np.concatenate(rows)
        pieces = (
            Piece(tuple(self.language.tokenize(first))),
            Piece((self.artifact.tokens.image_id,) * len(joined), joined),
            Piece(tuple(self.language.tokenize(last))),
        )
        return Picture(pieces, sum(picture.vision_s for picture in seen))

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        self.projector.close()
        super().close()


def internvl_tiles(config: dict[str, Any], image: Image) -> list[Image]:
    """The picture cut up as its image processor does it, row by row, the small overview last."""
    width, height = config["size"]["width"], config["size"]["height"]
    whole = resized(config, image)
    corners = itertools.product(range(0, whole.height, height), range(0, whole.width, width))
    cut = [whole.crop((left, top, left + width, top + height)) for top, left in corners]
    return cut if len(cut) == 1 else [*cut, scale(image, width, height, config)]


def stays_as_scaled(config: dict[str, Any]) -> bool:
    """Whether llama.cpp leaves a picture alone that has its final size already.

    Left to itself it keeps the shape and pads where Qwen2-VL's image processor stretches, crops nothing where LLaVA's
    does, and scales narrow pictures for Idefics3 a little otherwise. Idefics3 is scaled to whole tiles: only where the
    longest edge is a number of whole tiles does that not change it again.
    """
    if config["kind"] != "idefics3":
        return True
    edges = config["size"]["longest_edge"], config["max_image_size"]["longest_edge"]
    return bool(config["do_resize"]) and edges[0] % edges[1] == 0
