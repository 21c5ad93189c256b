"""Text as embeddings: the rows are llama.cpp's own, and one batch says what eleven said."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from mpa_edge.vlm.llama_cpp.language import LOG, Piece, TokenTable, last_error, merged, open_table

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q6_K")


def table_file(folder: Path, kind: str) -> tuple[Path, np.ndarray]:
    """A GGUF file with nothing but a table of 7 tokens."""
    values = np.random.default_rng(0).normal(size=(7, 256)).astype(np.float32)
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("other.weight", np.zeros((3, 32), np.float32))
    written = gguf.GGMLQuantizationType[kind]
    packed = values if kind == "F32" else gguf.quants.quantize(values, written) if kind != "Q6_K" else None
    if packed is None:  # the library reads this type and does not write it
        packed = np.random.default_rng(1).integers(0, 100, (7, 210), np.uint8)
    writer.add_tensor("token_embd.weight", packed, raw_dtype=written)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, gguf.quants.dequantize(packed, written).reshape(7, 256)


@pytest.mark.parametrize("kind", TYPES)
def test_rows_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    path, values = table_file(tmp_path, kind)
    table = open_table(path, read_header(path))
    assert table is not None
    assert np.array_equal(table([3, 0, 3]), values[[3, 0, 3]])


def test_one_piece_of_text_and_image(tmp_path: Path) -> None:
    path, values = table_file(tmp_path, "F32")
    table = TokenTable(path, read_header(path))
    image = np.ones((2, 256), np.float32)
    (one,) = merged([Piece((1, 2)), Piece((5, 5), image), Piece((4,))], table)
    assert one.ids == (1, 2, 5, 5, 4)
    assert one.embeddings is not None
    assert np.array_equal(one.embeddings, np.concatenate([values[[1, 2]], image, values[[4]]]))


def test_what_stays_in_pieces(tmp_path: Path) -> None:
    path, _ = table_file(tmp_path, "F32")
    table = TokenTable(path, read_header(path))
    text, image = Piece((1,)), Piece((5, 5), np.ones((2, 256), np.float32))
    on_a_grid = Piece((5, 5), np.ones((2, 256), np.float32), (1, 2))
    assert merged([text, image], None) == (text, image)
    assert merged([text], table) == (text,)
    assert merged([text, on_a_grid], table) == (text, on_a_grid)


def test_without_the_library_there_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = table_file(tmp_path, "F32")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert open_table(path, read_header(path)) is None


def test_the_last_failure_in_the_log_is_the_reason() -> None:
    LOG.clear()
    LOG.extend(["loading\n", "error: no such ", "tensor\n", "......\n", "freeing\n"])
    assert last_error() == "no such tensor"
    LOG.clear()
    assert last_error() == "no reason given"
