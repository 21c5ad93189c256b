"""A GGUF pair (language model and mmproj) as a VLM, through llama.cpp: no torch, no transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mpa_edge.errors import MpaError
from mpa_edge.vlm.llama_answer import LlamaAnswers, Picture
from mpa_edge.vlm.llama_picture import Projector

if TYPE_CHECKING:
    from PIL.Image import Image

    from mpa_edge.types import Pixels


class LlamaCppVLM(LlamaAnswers):
    """Answers with llama.cpp alone: mtmd sees the picture, one request at a time."""

    def __init__(self, folder: str | Path, *, name: str, threads: int | None = None) -> None:
        """Load an exported folder. MpaError where llama_cpp or a file is missing, or a file is damaged."""
        super().__init__(folder, name=name, threads=threads)
        self.projector = self._or_close(
            lambda: Projector(self.file("mmproj"), self.language, self.artifact.tokens.image_id)
        )

    def look(self, image: Image, pixels: Pixels | None = None) -> Picture:
        """Encode a picture; MpaError where `pixels` are given, since mtmd has an image processor of its own."""
        if pixels is not None:
            raise MpaError("llama.cpp takes a picture, not pixels: leave them out, or trace a hybrid export")
        return self.projector.look(image)

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        self.projector.close()
        super().close()
