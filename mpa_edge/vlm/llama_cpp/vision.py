"""A GGUF vision encoder (mmproj) through llama.cpp's mtmd: a picture becomes pieces of a prompt."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_edge.errors import MpaError
from mpa_edge.vlm.clock import Clock
from mpa_edge.vlm.llama_cpp.answer import Picture
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from mpa_edge.vlm.llama_cpp.language import LanguageModel, Piece
from mpa_edge.vlm.llama_cpp.log import last_error

if TYPE_CHECKING:
    from PIL.Image import Image


MOST_IMAGE_TOKENS = 2**16


class Projector:
    """One mmproj file, bound to the language model that it was made for."""

    def __init__(self, path: Path, language: LanguageModel, image_id: int, *, any_size: bool = False) -> None:
        """Load it; `any_size`: pictures keep their size whatever the file says. MpaError where it is damaged."""
        from llama_cpp import mtmd_cpp

        read_header(path)
        self.mtmd, self.language, self.image_id = mtmd_cpp, language, image_id
        params = mtmd_cpp.mtmd_context_params_default()
        params.n_threads, params.warmup, params.print_timings = language.threads, False, False
        params.flash_attn_type = language.lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if any_size:
            params.image_min_tokens, params.image_max_tokens = 1, MOST_IMAGE_TOKENS
        self.context: Any = mtmd_cpp.mtmd_init_from_file(os.fsencode(path), language.model, params)
        if not self.context:
            raise MpaError(f"llama.cpp cannot load {path} ({last_error()}): copy the whole folder, or export again")

    def look(self, image: Image) -> Picture:
        """Preprocess and encode an RGB picture."""
        with self._chunks(image) as chunks:
            n = self.mtmd.mtmd_input_chunks_size(chunks)
            clock = Clock()
            pieces = tuple(self._piece(self.mtmd.mtmd_input_chunks_get(chunks, i)) for i in range(n))
            return Picture(pieces, clock.lap())

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        if self.context:
            self.mtmd.mtmd_free(self.context)
        self.context = None

    @contextmanager
    def _chunks(self, image: Image) -> Iterator[Any]:
        """The picture as mtmd cuts it up, with the model's own tokens around and between the parts."""
        mtmd, marker = self.mtmd, self.mtmd.mtmd_default_marker()
        data = np.array(image.convert("RGB"), np.uint8)
        height, width, _ = data.shape
        bitmap = mtmd.mtmd_bitmap_init(width, height, data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        chunks = mtmd.mtmd_input_chunks_init()
        text = mtmd.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
        try:
            bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
            code = mtmd.mtmd_tokenize(self.context, chunks, ctypes.byref(text), bitmaps, 1)
            if code:
                raise MpaError(f"llama.cpp cannot read a picture of {width}x{height} ({last_error()}): use another one")
            yield chunks
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
            raise MpaError(f"llama.cpp cannot encode a picture, code {code} ({last_error()}): free memory, try again")
        rows = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(self.context), (n, self.language.hidden))
        return Piece((self.image_id,) * n, rows.copy(), self._grid(chunk, n))

    def _grid(self, chunk: Any, n: int) -> tuple[int, int] | None:
        """(rows, columns) of the embeddings of a model with M-RoPE."""
        if not self.mtmd.mtmd_decode_use_mrope(self.context):
            return None
        where = self.mtmd.mtmd_input_chunk_get_tokens_image(chunk)
        last = self.mtmd.mtmd_image_tokens_get_decoder_pos(where, 0, n - 1)
        return int(last.y) + 1, int(last.x) + 1
