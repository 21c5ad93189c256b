from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf import convert, plan, planned_bytes, predicted_bytes, quantize_gguf, read_header
from mpa_edge.exporters.gguf.plan import DEFAULT_TYPES, gqa_of, shapes_of
from mpa_edge.exporters.gguf.quantize import notes
from mpa_edge.vlm.llama_cpp.gguf_header import Header, TensorInfo
from tests.exporters.gguf.headers import gguf, tensor, text, write
from tests.exporters.gguf.made import converted
from tests.families import zoo


def shapes(hidden: int, layers: int = 2, tied: bool = True) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (512, hidden), "output_norm.weight": (hidden,)}
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate"):
            found[f"blk.{layer}.{name}.weight"] = (hidden, hidden)
        found[f"blk.{layer}.ffn_down.weight"] = (hidden, 2 * hidden)
    return found | ({} if tied else {"output.weight": (512, hidden)})


def types(precision: str, hidden: int = 256, tied: bool = True, n_gqa: int = 1) -> dict[str, str]:
    return {name: one.type for name, one in plan(shapes(hidden, tied=tied), precision, n_gqa).items()}


def test_tied_embeddings_are_kept_finer_than_the_rest() -> None:
    assert types("q4_0")["token_embd.weight"] == "q6_k"
    assert types("q4_0", tied=False)["token_embd.weight"] == "q4_0"
    assert types("q4_0", tied=False)["output.weight"] == "q6_k"
    assert types("q8_0")["token_embd.weight"] == "q8_0"


def test_narrow_rows_fall_back() -> None:
    made = types("q4_k_m", hidden=576)
    assert made["blk.0.attn_q.weight"] == "q5_0"
    assert made["token_embd.weight"] == "q8_0"
    assert types("q6_k", hidden=576)["blk.0.attn_q.weight"] == "q8_0"
    assert types("q8_0", hidden=40)["blk.0.attn_q.weight"] == "f16"


def test_norms_stay_as_they_are() -> None:
    assert types("q4_0")["output_norm.weight"] == "f32"


def test_grouped_queries_get_finer_values_at_two_bits() -> None:
    assert types("q2_k")["blk.0.attn_v.weight"] == "q3_k"
    assert types("q2_k", n_gqa=4)["blk.0.attn_v.weight"] == "q4_k"


def header_of(hidden: int) -> Header:
    tensors = tuple(TensorInfo(name, shape, "f16", 0, 0) for name, shape in shapes(hidden).items())
    return Header({"general.architecture": "llama"}, tensors, 0, 1024)


def test_the_user_is_told_what_fell_back_and_what_is_better() -> None:
    fell, larger = notes(header_of(576), "q4_k_m")
    assert fell == "q4_k_m: rows of 14 of 16 tensors do not fit its blocks, they fell back (12 to q5_0, 2 to q8_0)"
    assert larger == "q4_k_m: 4.3 MB is larger than q4_0 would be (3.3 MB): prefer gguf-q4_0"


def test_where_rows_fit_there_is_nothing_to_tell() -> None:
    assert [notes(header_of(256), precision) for precision in DEFAULT_TYPES] == [[]] * len(DEFAULT_TYPES)


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
def test_the_plan_is_what_the_quantizer_does(which: str, tmp_path: Path) -> None:
    if which == "narrow":
        source = tmp_path / "narrow.gguf"
        convert(zoo.checkpoint("idefics3", hidden=192), "language", source)
    else:
        source = converted(which, "language")
    header = read_header(source)
    for precision in DEFAULT_TYPES:
        out = tmp_path / f"{precision}.gguf"
        said = quantize_gguf(source, out, precision, threads=1)
        made = read_header(out)
        planned = plan(shapes_of(header), precision, gqa_of(header))
        assert {t.name: t.type for t in made.tensors} == {name: one.type for name, one in planned.items()}
        assert made.file_bytes == pytest.approx(predicted_bytes(header, precision), rel=0.001)
        assert bool(said) == (which == "narrow" and precision != "q8_0")


def test_bytes_are_those_of_the_blocks() -> None:
    one = {"output.weight": (2, 256), "token_embd.weight": (2, 256)}
    assert planned_bytes(one, "q4_0") == 2 * 210 + 28 + 2 * 8 * 18
