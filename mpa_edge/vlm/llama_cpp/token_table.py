"""Embeddings of text tokens out of a GGUF file, so that text and picture can be read in one batch.

llama.cpp takes a batch of token ids or a batch of embeddings, never both. A prompt with five tiles is then eleven
batches, most of them tiny, and each costs a pass over all weights. With the embeddings of the text at hand it is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpa_edge.vlm.llama_cpp.language import Piece

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpa_edge.vlm.llama_cpp.gguf_header import Header

NAME = "token_embd.weight"


class TokenTable:
    """The rows of token_embd.weight, dequantized one at a time as llama.cpp does it; the file stays on the disk."""

    def __init__(self, path: Path, header: Header) -> None:
        """Of a file that was checked already; see `open_table` for what can be missing."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        info = next(tensor for tensor in header.tensors if tensor.name == NAME)
        n_rows, self.hidden = info.shape
        self._type = GGMLQuantizationType[info.type.upper()]
        shape = (n_rows, info.n_bytes // n_rows)
        self._rows = np.memmap(path, np.uint8, "r", info.offset, shape)
        self._dequantize = dequantize

    def __call__(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """(tokens, hidden)."""
        values = self._dequantize(self._rows[list(ids)], self._type)
        return np.asarray(values, np.float32).reshape(len(ids), self.hidden)


def open_table(path: Path, header: Header) -> TokenTable | None:
    """The table of a language model; None where the gguf library is missing or does not know the type."""
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
