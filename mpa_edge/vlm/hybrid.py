"""An ONNX vision encoder in front of a GGUF language model: each half in the runtime that is faster at it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import MpaError, missing_package
from mpa_edge.vlm.llama_cpp.language import Piece
from mpa_edge.vlm.llama_cpp.model import LlamaCppVLM
from mpa_edge.vlm.llama_cpp.vision import EncodedImage
from mpa_edge.vlm.pixels import prepare

if TYPE_CHECKING:
    from PIL.Image import Image

    from mpa_edge.types import Pixels, Request
    from mpa_edge.vlm.shared.usage import Usage


class HybridVLM(LlamaCppVLM):
    """Answers one request at a time: ONNX Runtime encodes the image, llama.cpp reads the embeddings and answers."""

    def _language_on(self) -> Sequence[str]:
        return (*self.accelerators, "cpu")

    def _load_vision(self) -> Any:
        try:
            from mpa_edge.vlm.onnxruntime.providers import choose, with_engines
            from mpa_edge.vlm.onnxruntime.sessions import VisionEncoder
        except ModuleNotFoundError as error:
            raise missing_package(str(error.name).partition(".")[0], "onnx") from error
        chosen = replace(choose((*self.accelerators, "cpu"), self.provider_options), profile=self.profile)
        self.execution = with_engines(chosen, self.folder, self.artifact.context_tokens)
        return VisionEncoder(self.file("vision"), self.language.threads, self.execution)

    def profile_of(self, request: Request) -> Usage:
        """Answer once more, and report what computed: the encoder by ONNX Runtime's profile, the rest by llama.cpp."""
        from mpa_edge.vlm.onnxruntime.profile import usage_of

        skipped = self.vision.n_runs
        timing = self.answer([request])[0].timing
        usage = usage_of([self.vision], self.execution, [skipped])
        language_s = (timing.prefill_s or 0.0) + (timing.decode_s or 0.0) if timing else 0.0
        offload, seconds, elsewhere = self.language.offload, dict(usage.seconds or {}), usage.elsewhere
        used = usage.accelerator if usage.accelerator != "cpu" else offload.accelerator
        if used != offload.accelerator:
            elsewhere = ((f"language model on {offload.accelerator}", language_s), *elsewhere)
        elif used != usage.accelerator:
            elsewhere = (("vision encoder on cpu", seconds.get("cpu", 0.0)),)
        seconds[offload.accelerator] = seconds.get(offload.accelerator, 0.0) + language_s
        device = usage.device or (offload.device.description if offload.device else "")
        return replace(usage, accelerator=used, device=device, seconds=seconds, elsewhere=elsewhere)

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
