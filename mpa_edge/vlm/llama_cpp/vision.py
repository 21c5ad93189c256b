"""A GGUF vision encoder (mmproj) through llama.cpp's mtmd: an image becomes pieces of a prompt."""

from __future__ import annotations

import ctypes
import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import fromarray

from mpa_edge.errors import MpaError, NotFiniteError
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from mpa_edge.vlm.llama_cpp.language import LanguageModel, Piece, last_error
from mpa_edge.vlm.llama_cpp.offload import FLASH_ATTENTION
from mpa_edge.vlm.pixels import lfm2_vl, resized
from mpa_edge.vlm.pixels.common import scale

if TYPE_CHECKING:
    from PIL.Image import Image

    from mpa_edge.types import Pixels

MAX_IMAGE_TOKENS = 2**16


@dataclass(frozen=True)
class EncodedImage:
    """What the language model reads in the place of an image."""

    pieces: tuple[Piece, ...]
    """In order; tokens around and between the embeddings are pieces, too."""
    vision_s: float
    """Seconds in the vision encoder with its connector."""
    pixels: Pixels | None = None
    """Input of the vision encoder; None where llama.cpp does not expose it."""


class Projector:
    """One mmproj file, bound to the language model that it was made for."""

    def __init__(self, path: Path, language: LanguageModel, image_id: int, *, any_size: bool = False) -> None:
        """Load it; `any_size`: ignore the file's limits of an image's size. MpaError where it is damaged."""
        from llama_cpp import mtmd_cpp

        read_header(path)
        self.mtmd, self.path, self.language, self.image_id = mtmd_cpp, path, language, image_id
        params = mtmd_cpp.mtmd_context_params_default()
        params.n_threads, params.warmup, params.print_timings = language.threads, False, False
        params.flash_attn_type = FLASH_ATTENTION[language.offload.options.flash_attention]
        device = language.offload.projector
        params.use_gpu, params.device = device is not None, device.handle if device else None
        if any_size:
            params.image_min_tokens, params.image_max_tokens = 1, MAX_IMAGE_TOKENS
        self.context: Any = mtmd_cpp.mtmd_init_from_file(os.fsencode(path), language.model, params)
        if not self.context:
            raise MpaError(
                f"llama.cpp cannot load {path} ({last_error()}): copy the whole folder, or rerun mpa-edge export"
            )

    def look(self, image: Image) -> EncodedImage:
        """Preprocess and encode an RGB image, with the model's own tokens around and between its parts."""
        mtmd, marker = self.mtmd, self.mtmd.mtmd_default_marker()
        data = np.array(image.convert("RGB"), np.uint8)
        height, width, _ = data.shape
        bitmap = mtmd.mtmd_bitmap_init(width, height, data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        chunks = mtmd.mtmd_input_chunks_init()
        text = mtmd.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
        try:
            bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
            if mtmd.mtmd_tokenize(self.context, chunks, ctypes.byref(text), bitmaps, 1):
                raise MpaError(f"llama.cpp cannot read an image of {width}x{height} ({last_error()}): leave it out")
            started = time.perf_counter()
            n = mtmd.mtmd_input_chunks_size(chunks)
            pieces = tuple(self._piece(mtmd.mtmd_input_chunks_get(chunks, i)) for i in range(n))
            return EncodedImage(pieces, time.perf_counter() - started)
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)

    def _piece(self, chunk: Any) -> Piece:
        mtmd = self.mtmd
        n = int(mtmd.mtmd_input_chunk_get_n_tokens(chunk))
        if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
            tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(ctypes.c_size_t()))
            return Piece(tuple(tokens[:n]))
        if code := mtmd.mtmd_encode_chunk(self.context, chunk):
            raise MpaError(f"llama.cpp cannot encode an image, code {code} ({last_error()}): free memory and rerun")
        rows = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(self.context), (n, self.language.hidden)).copy()
        if not np.isfinite(rows).all():
            raise NotFiniteError(self.path, "mmproj")
        grid = None
        if mtmd.mtmd_decode_use_mrope(self.context):
            tokens = mtmd.mtmd_input_chunk_get_tokens_image(chunk)
            last = mtmd.mtmd_image_tokens_get_decoder_pos(tokens, 0, n - 1)
            grid = int(last.y) + 1, int(last.x) + 1
        return Piece((self.image_id,) * n, rows, grid)

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        if self.context:
            self.mtmd.mtmd_free(self.context)
        self.context = None


def images_for_mtmd(config: dict[str, Any], image: Image) -> list[Image]:
    """What llama.cpp must be shown so that it encodes what the checkpoint's image processor would.

    Left to itself, llama.cpp keeps the shape and pads where Qwen2-VL's image processor stretches, crops nothing where
    LLaVA's does, and scales narrow images for Idefics3 a little differently. So an image is scaled here, and llama.cpp
    leaves it alone because it already has its final size. InternVL's is also cut here, because llama.cpp has other
    rules for that: tiles row by row, then the overview. So is LFM2-VL's. `config` is `Artifact.image`.
    """
    if config["kind"] == "lfm2_vl":
        return [fromarray(tile) for tile in lfm2_vl.tiles(config, image)]
    if config["kind"] == "idefics3":
        # an image is scaled to whole tiles: that is its final size only if the longest edge is a multiple of a tile's
        longest, tile = config["size"]["longest_edge"], config["max_image_size"]["longest_edge"]
        return [resized(config, image) if config["do_resize"] and longest % tile == 0 else image]
    whole = resized(config, image)
    if config["kind"] != "internvl":
        return [whole]
    width, height = config["size"]["width"], config["size"]["height"]
    corners = itertools.product(range(0, whole.height, height), range(0, whole.width, width))
    tiles = [whole.crop((left, top, left + width, top + height)) for top, left in corners]
    return tiles if len(tiles) == 1 else [*tiles, scale(image, width, height, config)]
