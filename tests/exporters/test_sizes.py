"""What is predicted before an export is what lies on the disk after it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mpa_edge.config.library import load_scheme, names
from mpa_edge.errors import MpaError
from mpa_edge.exporters.budget import image_values
from mpa_edge.exporters.gguf.convert import convert
from mpa_edge.exporters.gguf.quantize import quantize_gguf
from mpa_edge.exporters.onnx.quantize import quantize_component
from mpa_edge.exporters.publish.layout import file_name
from mpa_edge.exporters.sizes import full_bytes, gguf_bytes, onnx_bytes, predict_sizes, size_table
from mpa_edge.exporters.source import Source
from mpa_edge.exporters.tensors import Weight, is_tied, read_weights, used
from mpa_edge.vlm import WEIGHTS
from tests.families import zoo
from tests.vlm.exported import onnx_folder

TOLERANCE = 0.05
PARTS = ("vision", "embed", "decoder")
# qdq needs the pictures of a run: the built-in student's are measured by the benchmark
ONNX = ("fp32", "fp16", "int8", "q4", "q4f16", "q2")
GGUF = ("f16", "q8_0", "q6_k", "q4_k_m", "q4_0", "q2_k")


def source_of(checkpoint: Path) -> Source:
    return Source(checkpoint.name, checkpoint, Path("never-written"))


def weights_of(source: Source) -> list[Weight]:
    return list(used(read_weights(source.checkpoint), source.config))


def off(predicted: int, path: Path) -> float:
    real = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    return predicted / real - 1


@pytest.mark.slow
@pytest.mark.parametrize("model_type", zoo.MODEL_TYPES)
@pytest.mark.parametrize("component", PARTS)
def test_an_onnx_graph_is_as_large_as_predicted(tmp_path: Path, model_type: str, component: str) -> None:
    source, scheme = source_of(zoo.checkpoint(model_type)), load_scheme("onnx-q4")
    full = tmp_path / "fp32.onnx"
    shutil.copy(onnx_folder(model_type) / file_name("onnx", component, "fp32"), full)
    weights, tied, wrong = weights_of(source), is_tied(source.config), {}
    for precision in ONNX:
        out = tmp_path / f"{precision}.onnx"
        if precision != "fp32":
            quantize_component(full, out, component, precision, scheme)
        wrong[precision] = off(onnx_bytes(weights, tied, component, precision, scheme.block_size), out)
    assert max(map(abs, wrong.values())) < TOLERANCE, wrong


@pytest.mark.slow
@pytest.mark.parametrize("component", PARTS)
def test_a_graph_tells_nothing_of_this_machine(component: str) -> None:
    """The tracer writes a stack trace into each node: a quarter of a small file, and paths of whoever made it."""
    data = (onnx_folder("smolvlm") / file_name("onnx", component, "fp32")).read_bytes()
    assert b"mpa_edge/" not in data
    assert b"site-packages" not in data


@pytest.mark.peer
@pytest.mark.parametrize("model_type", zoo.MODEL_TYPES)
def test_a_gguf_file_is_as_large_as_predicted(tmp_path: Path, model_type: str) -> None:
    source, wrong = source_of(zoo.checkpoint(model_type)), {}
    weights, image = weights_of(source), image_values(source.checkpoint, None)
    for precision in ("f16", "q8_0"):
        out = tmp_path / f"mmproj-{precision}.gguf"
        convert(source.checkpoint, "mmproj", out, precision, image)
        wrong[f"mmproj {precision}"] = off(gguf_bytes(source, weights, "mmproj", precision), out)
    full = tmp_path / "f16.gguf"
    convert(source.checkpoint, "language", full, "f16", image)
    for precision in GGUF:
        out = tmp_path / f"{precision}.gguf"
        if precision != "f16":
            quantize_gguf(full, out, precision, 1)
        wrong[precision] = off(gguf_bytes(source, weights, "language", precision), out)
    assert max(map(abs, wrong.values())) < TOLERANCE, wrong


def test_a_hidden_of_576_falls_back_so_that_k_quants_are_no_smaller(tmp_path: Path) -> None:
    """Rows that are no multiple of 256, as those of SmolVLM-256M."""
    source = source_of(zoo.checkpoint("idefics3", hidden=192))
    sizes = {name: predict_sizes(source, load_scheme(name))["language"] for name in ("gguf-q4_k_m", "gguf-q4_0")}
    assert sizes["gguf-q4_k_m"] > sizes["gguf-q4_0"]


def test_what_the_model_never_reads_is_not_counted() -> None:
    """LLaVA takes the last layer but one of its tower; SigLIP's pooling head is no part of it."""
    towers = ("vision_tower.vision_model", "vision_tower")
    for tower in towers:
        rows = [
            *(Weight(f"{tower}.encoder.layers.{i}.mlp.fc1.weight", (8, 8), "vision") for i in range(4)),
            Weight(f"{tower}.head.mlp.fc1.weight", (8, 8), "vision"),
            Weight("lm_head.weight", (9, 8), "head"),
        ]
        kept = list(used(rows, {"vision_feature_layer": -2, "tie_word_embeddings": True}))
        assert [row.layer for row in kept] == [0, 1, 2]
        assert len(list(used(rows, {"tie_word_embeddings": False}))) == 5


def test_every_scheme_has_a_size_and_the_table_shows_it() -> None:
    source = source_of(WEIGHTS / "student")
    sizes = {name: predict_sizes(source, load_scheme(name)) for name in names("schemes")}
    table = size_table(source, sizes)
    for name, row in sizes.items():
        line = next(line for line in table.splitlines() if f" {name} " in line)
        for size in (*row.values(), sum(row.values())):
            assert f"{size / 1e6:,.2f}" in line or f"{size / 1e6:,.1f}" in line
        assert all(size > 0 for size in row.values())
    assert full_bytes(source, "embed") == 512 * 256 * 4
    share = sizes["onnx-fp16"]["decoder"] / full_bytes(source, "decoder")
    assert 0.5 < share < 0.55
    assert f"{share:4.0%}" in table


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "idefics3"}')
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(MpaError, match=r"model.safetensors is damaged \(.*\): copy the checkpoint again"):
        predict_sizes(source_of(tmp_path), load_scheme("onnx-fp32"))
