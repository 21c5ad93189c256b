from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray

from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.convert import convert
from mpa_edge.exporters.gguf.quantize import DEFAULT_TYPES, WEIGHTED, notes, quantize_gguf
from mpa_edge.vlm.llama_cpp.gguf_header import Header, TensorInfo, read_header
from tests.exporters.gguf.headers import gguf, tensor, text, write
from tests.exporters.gguf.made import converted, source_of
from tests.families import zoo


def header_of(precision: str, hidden: int) -> Header:
    """A quantized language model of two layers, as llama.cpp makes it."""
    own = DEFAULT_TYPES[precision] if hidden % 256 == 0 else {"q4_k_m": "q5_0", "q6_k": "q8_0"}.get(precision, "q4_0")
    names = {"token_embd.weight": (512, hidden), "blk.0.ffn_up.weight": (512, hidden)}
    tensors = [TensorInfo(name, shape, own, 0, 0) for name, shape in names.items()]
    tensors += [TensorInfo("output_norm.weight", (hidden,), "f32", 0, 0)]
    return Header({"general.architecture": "llama"}, tuple(tensors), 1024)


def test_the_user_is_told_what_fell_back_and_what_is_better() -> None:
    fell, better = notes(header_of("q4_k_m", 576), "q4_k_m")
    assert fell == "q4_k_m: rows of 2 of 3 tensors do not fit its blocks, they fell back (2 to q5_0)"
    assert better == "q4_k_m: q5_0 takes more bytes than q4_0 would: prefer gguf-q4_0"
    (fell,) = notes(header_of("q6_k", 576), "q6_k")
    assert fell == "q6_k: rows of 2 of 3 tensors do not fit its blocks, they fell back (2 to q8_0)"


def test_where_rows_fit_there_is_nothing_to_tell() -> None:
    assert [notes(header_of(precision, 256), precision) for precision in DEFAULT_TYPES] == [[]] * len(DEFAULT_TYPES)


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MpaError, match="no GGUF precision 'q3': choose q8_0, q6_k"):
        quantize_gguf(tmp_path / "x.gguf", tmp_path / "y.gguf", "q3")


def test_a_hostile_source_never_reaches_llama_cpp(tmp_path: Path) -> None:
    path = write(tmp_path, gguf(n_tensors=2**63))
    with pytest.raises(MpaError, match="not a valid GGUF file"):
        quantize_gguf(path, tmp_path / "out.gguf", "q8_0")
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.slow
def test_what_llama_cpp_refuses_ends_in_one_line(tmp_path: Path) -> None:
    """A good header of a model that no program knows."""
    architecture = text("general.architecture") + (8).to_bytes(4, "little") + text("nonsense")
    path = write(tmp_path, gguf((architecture,), (tensor("token_embd.weight", (2, 32), kind=1),), data=b"\0" * 128))
    with pytest.raises(MpaError, match="llama.cpp did not quantize to q8_0 .*nonsense.*: use gguf-f16") as caught:
        quantize_gguf(path, tmp_path / "out.gguf", "q8_0")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.peer
@pytest.mark.parametrize("which", ["student", "qwen2_vl", "narrow"])
def test_the_file_has_fewer_bits_and_says_where_rows_did_not_fit(which: str, tmp_path: Path) -> None:
    if which == "narrow":
        source = tmp_path / "narrow.gguf"
        convert(source_of(zoo.checkpoint("idefics3", hidden=192)), "language", source)
    else:
        source = converted(which, "language")
    for precision, own in DEFAULT_TYPES.items():
        out = tmp_path / f"{precision}.gguf"
        lines = quantize_gguf(source, out, precision, threads=1)
        made = read_header(out)
        assert made.file_bytes < read_header(source).file_bytes
        assert bool(lines) == (which == "narrow" and precision != "q8_0")
        matrices = [tensor.type for tensor in made.tensors if tensor.name.endswith(("ffn_up.weight", "attn_q.weight"))]
        assert set(matrices) == {own} or which == "narrow"


@pytest.mark.peer
@pytest.mark.parametrize("precision", WEIGHTED)
def test_weights_of_large_inputs_are_rounded_more_carefully(precision: str, tmp_path: Path) -> None:
    """One input of a matrix counts a thousand times as much as the others: its weights come out closer."""
    source, name, loud = converted("student", "language"), "blk.0.ffn_up.weight", 5
    original = weights(source, name)
    inputs = np.ones(original.shape[1], np.float32)
    inputs[loud] = 1e3
    np.savez(tmp_path / "importance.npz", **{"layers.0.mlp.up_proj": inputs})

    def error(importance: Path | None) -> float:
        out = tmp_path / f"{importance is not None}.gguf"
        quantize_gguf(source, out, precision, 1, importance)
        return float(np.square(weights(out, name) - original)[:, loud].mean())

    assert error(tmp_path / "importance.npz") < 0.7 * error(None)


def weights(path: Path, name: str) -> NDArray[np.float32]:
    """A tensor of a GGUF file, (rows, columns)."""
    found = next(one for one in GGUFReader(path).tensors if one.name == name)
    values: NDArray[np.float32] = dequantize(found.data, found.tensor_type)
    return values
