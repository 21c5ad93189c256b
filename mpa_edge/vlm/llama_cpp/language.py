"""A GGUF language model through the C API of llama.cpp: tokens and embeddings in, logits out."""

from __future__ import annotations

import collections
import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_edge.errors import MpaError, missing_package
from mpa_edge.vlm.llama_cpp.amx import refuse_miscompiled
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from mpa_edge.vlm.llama_cpp.offload import FLASH_ATTENTION, KV_CACHE, PLACED, Offload, model_params
from mpa_edge.vlm.shared.prompts import THOUGHT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpa_edge.vlm.llama_cpp.gguf_header import Header

BATCH_TOKENS = 512
# computed together: attention over more of them at once falls out of the caches (346 tokens on SmolVLM-256M shapes took
# 0.26 s with 512, 0.21 s with 256)
COMPUTED_TOKENS = 256
EMBEDDING_TABLE = "token_embd.weight"
LAYER_TABLE = "per_layer_token_embd.weight"
"""Embeddings that each layer looks up by a token's id: a model with them must be given the ids of text."""
LOG: collections.deque[str] = collections.deque(maxlen=50)
"""The last lines that llama.cpp and mtmd logged, oldest first."""
PLACES: collections.deque[str] = collections.deque(maxlen=200)
"""Those of them that say where the model loaded last is."""
_LOG_CALLBACKS: list[Any] = []
"""The library may call them at any time, so they live as long as the process."""


def load_llama_cpp() -> Any:
    """The `llama_cpp` package; its log goes to `LOG` instead of the screen.

    MpaError where the package is missing, or was compiled so that it crashes on this CPU.
    """
    try:
        import llama_cpp
        from llama_cpp import mtmd_cpp
    except ModuleNotFoundError as error:
        raise missing_package("llama-cpp-python", "gguf") from error
    if not _LOG_CALLBACKS:
        refuse_miscompiled(Path(llama_cpp.__file__).parent / "lib", llama_cpp.__version__)

        @llama_cpp.llama_log_callback
        def keep(_level: int, text: bytes, _user_data: Any) -> None:
            line = text.decode("utf-8", "replace")
            LOG.append(line)
            if PLACED.search(line):
                PLACES.append(line)

        _LOG_CALLBACKS.append(keep)
        llama_cpp.llama_log_set(keep, ctypes.c_void_p())
        mtmd_cpp.mtmd_helper_log_set(keep, ctypes.c_void_p())
    return llama_cpp


def last_error() -> str:
    """The last log line that mentions a failure, else the last line. llama.cpp's return codes do not give a reason."""
    lines = [line.strip() for line in "".join(LOG).replace("\r", "\n").splitlines() if line.strip(" .")]
    failures = [line for line in lines if any(word in line.lower() for word in ("error", "fail", "invalid", "unknown"))]
    return (failures or lines or ["no reason given"])[-1].removeprefix("error: ")[:200]


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt: tokens, or image embeddings in their place."""

    ids: tuple[int, ...]
    """Token ids; for embeddings, the image token's id repeated."""
    embeddings: NDArray[np.float32] | None = None
    """(tokens, hidden); None for text: llama.cpp looks the ids up."""
    grid: tuple[int, int] | None = None
    """(rows, columns) of the embeddings for a model with M-RoPE; None: consecutive positions."""

    @property
    def n_positions(self) -> int:
        """How many positions the piece takes up."""
        return max(self.grid) if self.grid else len(self.ids)


class LanguageModel:
    """One model with one sequence in its key-value cache."""

    def __init__(
        self, path: Path, *, context_tokens: int, threads: int | None = None, offload: Offload | None = None
    ) -> None:
        """Load a GGUF file; `offload`: None: on the CPU. MpaError where llama_cpp is missing or the file is damaged."""
        lib, offload = load_llama_cpp(), offload or Offload()
        self.lib, self.offload = lib, offload
        self.path, self.threads = path, threads or len(os.sched_getaffinity(0))
        self.header = read_header(path)  # checks the file before llama.cpp opens it
        self.context: Any = None
        PLACES.clear()
        self.model: Any = lib.llama_model_load_from_file(os.fsencode(path), model_params(lib, offload))
        if not self.model:
            raise MpaError(
                f"llama.cpp cannot load {path} ({last_error()}): copy the whole folder, or rerun mpa-edge export"
            )
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = context_tokens, 1
        params.n_batch, params.n_ubatch = min(BATCH_TOKENS, context_tokens), min(COMPUTED_TOKENS, context_tokens)
        # one row of logits at a time: the working memory of 512 rows is 100 MB with a vocabulary of 49k
        params.n_outputs_max = 1
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = FLASH_ATTENTION[offload.flash_attention]
        params.type_k = params.type_v = KV_CACHE[offload.options.kv_cache]
        params.no_perf = True
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            self.close()
            raise MpaError(f"llama.cpp has no memory for {context_tokens} tokens of context: free some memory")
        self.vocabulary = lib.llama_model_get_vocab(self.model)
        self.n_vocabulary = int(lib.llama_vocab_n_tokens(self.vocabulary))
        self.hidden = int(lib.llama_model_n_embd_inp(self.model))
        self.can_rewind = not (lib.llama_model_is_hybrid(self.model) or lib.llama_model_is_recurrent(self.model))
        """Whether the cache holds every token; a recurrent state holds only their sum."""
        ids = [self.tokenize(token) for token in THOUGHT]
        self.thought = [only[0] if len(only) == 1 else None for only in ids]
        self.position = 0
        # a batch of one token that asks for its logits, allocated once: it runs for every token of an answer
        self._id, self._id_position, wanted = (lib.llama_token * 1)(), (lib.llama_pos * 1)(), (ctypes.c_int8 * 1)(1)
        self._one_token = lib.llama_batch(n_tokens=1, token=self._id, pos=self._id_position, logits=wanted)

    def attach(self, adapter: Path) -> None:
        """Apply a LoRA adapter from now on. MpaError where it is damaged or was made for another model."""
        read_header(adapter)
        loaded = self.lib.llama_adapter_lora_init(self.model, os.fsencode(adapter))
        adapters, scales = (self.lib.llama_adapter_lora_p_ctypes * 1)(loaded), (ctypes.c_float * 1)(1.0)
        if not loaded or self.lib.llama_set_adapters_lora(self.context, adapters, 1, scales):
            raise MpaError(
                f"llama.cpp cannot apply {adapter} to {self.path} ({last_error()}): use the base that it names"
            )

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text; special tokens in it become their ids, none is added."""
        raw = text.encode()
        capacity = len(raw) + 8
        ids = (self.lib.llama_token * capacity)()
        n = self.lib.llama_tokenize(self.vocabulary, raw, len(raw), ids, capacity, False, True)
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
        """Drop everything from a position on from the cache; only from 0 where the model cannot rewind."""
        memory = self.lib.llama_get_memory(self.context)
        if position == 0:
            self.lib.llama_memory_clear(memory, False)
        elif not self.lib.llama_memory_seq_rm(memory, 0, position, -1):
            raise MpaError("llama.cpp cannot go back in its cache: report it, and ask about each image once")
        self.position = position

    def read(self, piece: Piece, *, logits: bool = False) -> None:
        """Append a piece to the cache; `logits` of its last token are computed on request."""
        step, n = int(self.lib.llama_n_batch(self.context)), len(piece.ids)
        positions = np.arange(self.position, self.position + n, dtype=np.int32)[None]
        if piece.grid is not None:  # time, row, column and an unused axis, as llama.cpp orders M-RoPE
            row, column = np.divmod(np.arange(n, dtype=np.int32), piece.grid[1])
            zeros = np.zeros(n, np.int32)
            positions = np.stack([zeros + self.position, row + self.position, column + self.position, zeros])
        for start in range(0, n, step):
            end = min(start + step, n)
            wanted = np.zeros(end - start, np.int8)
            wanted[-1] = logits and end == n
            batch = self.lib.llama_batch(n_tokens=end - start)
            batch.pos = _array(self.lib.llama_pos, positions[:, start:end])
            batch.logits = _array(ctypes.c_int8, wanted)
            if piece.embeddings is None:
                batch.token = (self.lib.llama_token * batch.n_tokens)(*piece.ids[start:end])
            else:
                batch.embd = _array(ctypes.c_float, np.asarray(piece.embeddings[start:end], np.float32))
            self._decode(batch)
        self.position += piece.n_positions

    def step(self, token: int) -> None:
        """Append one token to the cache and compute its logits."""
        self._id[0], self._id_position[0] = token, self.position
        self._decode(self._one_token)
        self.position += 1

    def _decode(self, batch: Any) -> None:
        if code := self.lib.llama_decode(self.context, batch):
            raise MpaError(f"llama.cpp stopped with code {code} ({last_error()}): free memory and rerun")

    def logits(self) -> NDArray[np.float32]:
        """(vocabulary,) of the last token that asked for them; a view, valid until the next `read` or `step`."""
        pointer = self.lib.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, (self.n_vocabulary,))

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        if self.context:
            self.lib.llama_free(self.context)
        if self.model:
            self.lib.llama_model_free(self.model)
        self.context = self.model = None


def _array(kind: Any, values: NDArray[Any]) -> Any:
    """A C array with a copy of the values: numpy's own pointers do not keep their array alive."""
    return (kind * values.size).from_buffer(np.array(values, order="C"))


class TokenTable:
    """Embeddings of text tokens, read from the file and dequantized a row at a time, as llama.cpp does it.

    llama.cpp takes a batch of token ids or a batch of embeddings, never both. A prompt with five tiles is then eleven
    batches, most of them tiny, and each costs a pass over all weights. With the embeddings of the text it is one batch.
    """

    def __init__(self, path: Path, header: Header) -> None:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        info = next(tensor for tensor in header.tensors if tensor.name == EMBEDDING_TABLE)
        n_rows, self.hidden = info.shape
        self._type, self._dequantize = GGMLQuantizationType[info.type.upper()], dequantize
        self._rows = np.memmap(path, np.uint8, "r", info.offset, (n_rows, info.n_bytes // n_rows))

    def __call__(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Embeddings of some tokens, (tokens, hidden)."""
        values = self._dequantize(self._rows[list(ids)], self._type)
        return np.asarray(values, np.float32).reshape(len(ids), self.hidden)


def open_table(path: Path, header: Header) -> TokenTable | None:
    """The table of a language model; None where the gguf package is missing or does not know the type.

    None, too, where embeddings of text cannot stand for its ids.
    """
    if any(tensor.name == LAYER_TABLE for tensor in header.tensors):
        return None
    try:
        table = TokenTable(path, header)
        table([0])
    except (ImportError, LookupError, NotImplementedError, StopIteration):
        return None
    return table


def merged(pieces: Sequence[Piece], table: TokenTable | None) -> tuple[Piece, ...]:
    """Text and embeddings as one piece of embeddings, where there is a table and no piece lies on a grid."""
    if table is None or len(pieces) < 2 or any(piece.grid for piece in pieces):
        return tuple(pieces)
    rows = [table(piece.ids) if piece.embeddings is None else piece.embeddings for piece in pieces]
    return (Piece(tuple(token for piece in pieces for token in piece.ids), np.concatenate(rows)),)
