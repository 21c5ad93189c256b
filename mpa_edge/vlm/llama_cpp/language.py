"""A GGUF language model through the C API of llama.cpp: tokens and embeddings go in, logits come out."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_edge.errors import MpaError, missing_package
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from mpa_edge.vlm.llama_cpp.log import last_error, library_log

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_TOKENS = 512
# computed together: attention over more of them at once falls out of the caches (346 tokens on SmolVLM-256M shapes took
# 0.26 s with 512, 0.21 s with 256)
COMPUTED_TOKENS = 256
MROPE_AXES = 4


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt: tokens, or image embeddings in their place."""

    ids: tuple[int, ...]
    """Token ids; where there are embeddings, the image token's."""
    embeddings: NDArray[np.float32] | None = None
    """(tokens, hidden); None: the ids are looked up."""
    grid: tuple[int, int] | None = None
    """(rows, columns) of the embeddings where the model has a position for each (M-RoPE); None: one after another."""

    @property
    def n_positions(self) -> int:
        """How far the text behind it moves on."""
        return max(self.grid) if self.grid else len(self.ids)


def load_llama_cpp() -> Any:
    """The package, its log kept off the screen. MpaError where it is missing."""
    try:
        import llama_cpp
    except ModuleNotFoundError as error:
        raise missing_package("llama-cpp-python", "gguf") from error
    library_log()
    return llama_cpp


class LanguageModel:
    """One model with one sequence in its cache."""

    def __init__(self, path: Path, *, context_tokens: int, threads: int | None = None) -> None:
        """Load a GGUF file. MpaError where llama_cpp is missing or the file is damaged."""
        self.lib, self.path = load_llama_cpp(), path
        self.header = read_header(path)  # before llama.cpp opens it: this one has limits
        self.threads = threads or len(os.sched_getaffinity(0))
        self.model: Any = self.lib.llama_model_load_from_file(os.fsencode(path), self.lib.llama_model_default_params())
        if not self.model:
            raise MpaError(f"llama.cpp cannot load {path} ({last_error()}): copy the whole folder, or export again")
        self.context: Any = self.lib.llama_init_from_model(self.model, self._context_params(context_tokens))
        if not self.context:
            self.close()
            raise MpaError(f"llama.cpp has no memory for {context_tokens} tokens of context: free some memory")
        self.vocabulary = self.lib.llama_model_get_vocab(self.model)
        self.n_vocabulary = int(self.lib.llama_vocab_n_tokens(self.vocabulary))
        self.hidden = int(self.lib.llama_model_n_embd_inp(self.model))
        self.position = 0
        self._one = _OneToken(self.lib)

    def _context_params(self, context_tokens: int) -> Any:
        params = self.lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = context_tokens, 1
        params.n_batch = min(BATCH_TOKENS, context_tokens)
        params.n_ubatch = min(COMPUTED_TOKENS, context_tokens)
        # one row of logits at a time: the working memory of 512 rows is 100 MB with a vocabulary of 49k
        params.n_outputs_max = 1
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = self.lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        return params

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text; special tokens in it become their ids, none is added."""
        raw = text.encode()
        room = len(raw) + 8
        ids = (self.lib.llama_token * room)()
        n = self.lib.llama_tokenize(self.vocabulary, raw, len(raw), ids, room, False, True)
        if n < 0:
            raise MpaError(f"llama.cpp cannot tokenize a text of {len(raw)} bytes: shorten the question")
        return list(ids[:n])

    def text(self, ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        buffer = ctypes.create_string_buffer(1024)
        parts = []
        for token in ids:
            n = self.lib.llama_token_to_piece(self.vocabulary, token, buffer, len(buffer), 0, False)
            parts.append(buffer.raw[: max(n, 0)])
        return b"".join(parts).decode("utf-8", "replace")

    def rewind(self, position: int = 0) -> None:
        """Forget everything from a position on."""
        memory = self.lib.llama_get_memory(self.context)
        if position == 0:
            self.lib.llama_memory_clear(memory, False)
        elif not self.lib.llama_memory_seq_rm(memory, 0, position, -1):
            raise MpaError("llama.cpp cannot go back in its cache: report it, and ask about each image once")
        self.position = position

    def read(self, piece: Piece, *, logits: bool = False) -> None:
        """Put a piece behind what is there; `logits` of its last token are computed on request."""
        step = int(self.lib.llama_n_batch(self.context))
        positions = _positions(piece, self.position)
        for start in range(0, len(piece.ids), step):
            part = slice(start, min(start + step, len(piece.ids)))
            wanted = np.zeros(part.stop - part.start, np.int8)
            wanted[-1] = logits and part.stop == len(piece.ids)
            self._decode(_batch(self.lib, piece, part, positions, wanted))
        self.position += piece.n_positions

    def step(self, token: int) -> None:
        """Put one token behind what is there and compute its logits."""
        self._decode(self._one.batch(token, self.position))
        self.position += 1

    def _decode(self, batch: Any) -> None:
        code = self.lib.llama_decode(self.context, batch)
        if code:
            raise MpaError(f"llama.cpp stopped with code {code} ({last_error()}): free memory, and run it again")

    def logits(self) -> NDArray[np.float32]:
        """(vocabulary,) behind the last token that asked for them; a view, valid until the next piece or step."""
        pointer = self.lib.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, (self.n_vocabulary,))

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        if getattr(self, "context", None):
            self.lib.llama_free(self.context)
        if self.model:
            self.lib.llama_model_free(self.model)
        self.context = self.model = None


class _OneToken:
    """A batch of one token that asks for its logits, made once: this is what runs for each token of an answer."""

    def __init__(self, lib: Any) -> None:
        self.id, self.position, self.wanted = (lib.llama_token * 1)(), (lib.llama_pos * 1)(), (ctypes.c_int8 * 1)(1)
        self._batch = lib.llama_batch(n_tokens=1, token=self.id, pos=self.position, logits=self.wanted)

    def batch(self, token: int, position: int) -> Any:
        """The batch, with another token at another position."""
        self.id[0], self.position[0] = token, position
        return self._batch


def _positions(piece: Piece, start: int) -> NDArray[np.int32]:
    """(1, tokens), or (4, tokens) on a grid: time, row, column and an unused axis, as llama.cpp orders M-RoPE."""
    n = len(piece.ids)
    if piece.grid is None:
        return np.arange(start, start + n, dtype=np.int32)[None]
    columns = piece.grid[1]
    index = np.arange(n)
    axes = (np.zeros(n), index // columns, index % columns)
    return np.stack([*(start + axis for axis in axes), np.zeros(n)]).astype(np.int32)


def _batch(lib: Any, piece: Piece, part: slice, positions: NDArray[np.int32], wanted: NDArray[np.int8]) -> Any:
    """llama.cpp's own struct; it keeps the arrays alive that it points to."""
    batch = lib.llama_batch(n_tokens=part.stop - part.start)
    batch.pos = _array(lib.llama_pos, positions[:, part])
    batch.logits = _array(ctypes.c_int8, wanted)
    if piece.embeddings is None:
        batch.token = (lib.llama_token * batch.n_tokens)(*piece.ids[part])
    else:
        batch.embd = _array(ctypes.c_float, np.asarray(piece.embeddings[part], np.float32))
    return batch


def _array(kind: Any, values: NDArray[Any]) -> Any:
    """A C array with a copy of the values: numpy's own pointers do not keep their array alive."""
    return (kind * values.size).from_buffer(np.array(values, order="C"))
