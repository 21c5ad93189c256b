"""The forecast of an export's size against the weights in real files, and against sizes that were measured before."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from mpa_edge.config.library import load_scheme, names
from mpa_edge.config.scheme import Component, Scheme
from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.convert import convert
from mpa_edge.exporters.gguf.quantize import quantize_gguf
from mpa_edge.exporters.onnx.quantize import quantize_component
from mpa_edge.exporters.sizes import Tensor, disk_need_bytes, forecast_bytes, fp32_bytes, size_table, used
from mpa_edge.exporters.source import Source
from mpa_edge.planning.records import known_models
from mpa_edge.vlm import WEIGHTS
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from tests.families import zoo
from tests.vlm.exported import STUDENT, checkpoint, graph

TOLERANCE = 0.05
PARTS = ("vision", "embed", "decoder")
# the others have the layers of these
GRAPHS: list[tuple[Component, str]] = [
    *(("vision", model) for model in (STUDENT, "qwen2_5_vl", "llava", "lfm2_vl", "gemma4")),
    *(("embed", model) for model in (STUDENT, "gemma4")),
    *(("decoder", model) for model in (STUDENT, "qwen2_vl", "qwen3_5", "lfm2_vl", "gemma4")),
]
# qdq needs the images of a run
ONNX = ("fp32", "fp16", "int8", "q4", "q4f16", "q2")
GGUF = ("f16", "q8_0", "q6_k", "q4_k_m", "q4_0", "q2_k")
# graph structure, names, metadata and vocabulary: much of a toy, little of a real model
OVERHEAD_BYTES = 150_000


def source_of(folder: Path) -> Source:
    return Source(folder.name, folder, Path("never-written"))


def forecast(source: Source, component: Component, precision: str) -> int:
    scheme = load_scheme("onnx-q4") if component in PARTS else load_scheme("gguf-q4_0")
    changed: Scheme = scheme.model_copy(update={"components": {component: precision}})
    return forecast_bytes(source, changed)[component]


@pytest.mark.slow
@pytest.mark.parametrize(("component", "model"), GRAPHS)
def test_an_onnx_graph(tmp_path: Path, component: Component, model: str) -> None:
    source, wrong = source_of(checkpoint(model)), {}
    full = tmp_path / "fp32.onnx"
    shutil.copy(graph(model, component), full)
    for precision in ONNX:
        out = tmp_path / f"{precision}.onnx"
        if precision != "fp32":
            quantize_component(full, out, component, precision, load_scheme("onnx-q4"))
        real_bytes, predicted = out.stat().st_size, forecast(source, component, precision)
        if not -TOLERANCE * real_bytes < real_bytes - predicted < TOLERANCE * real_bytes + OVERHEAD_BYTES:
            wrong[precision] = (predicted, real_bytes)
    assert not wrong


# the others have the towers of these
@pytest.mark.peer
@pytest.mark.parametrize("model", [STUDENT, "qwen2_5_vl", "llava", "internvl"])
def test_the_weights_of_a_gguf_file(tmp_path: Path, model: str) -> None:
    source, off = source_of(checkpoint(model)), {}
    vocabulary = 36 * (source.config.get("text_config") or source.config)["vocab_size"]

    def compare(path: Path, component: Component, precision: str) -> None:
        header = read_header(path)
        weights_bytes = sum(tensor.n_bytes for tensor in header.tensors)
        predicted = forecast(source, component, precision) - (vocabulary if component == "language" else 0)
        off[f"{component} {precision}"] = predicted / weights_bytes - 1

    for precision in ("f16", "q8_0"):
        out = tmp_path / f"mmproj-{precision}.gguf"
        convert(source, "mmproj", out, precision)
        compare(out, "mmproj", precision)
    full = tmp_path / "f16.gguf"
    convert(source, "language", full, "f16")
    for precision in GGUF:
        out = full if precision == "f16" else tmp_path / f"{precision}.gguf"
        if precision != "f16":
            quantize_gguf(full, out, precision, 1)
        compare(out, "language", precision)
    # the tiny models have two layers: half of the K_M types fall on another share of the weights
    allowed = {key: 0.12 if key.endswith(("k_m", "q2_k")) else TOLERANCE for key in off}
    assert {key: value for key, value in off.items() if abs(value) > allowed[key]} == {}


# MB of whole exports with SmolVLM-256M's shapes, measured by benchmarks/bench.py (docs/results.md)
MEASURED_MB = {
    "onnx-fp32": 1026,
    "onnx-fp16": 513,
    "onnx-int8": 279,
    "onnx-q4": 218,
    "onnx-q4-q8": 243,
    "onnx-q4f16": 299,
    "gguf-f16": 517,
    "gguf-q8_0": 278,
    "gguf-q6_k": 272,
    "gguf-q4_k_m": 228,
    "gguf-q4_0": 211,
    "hybrid-int8-q8_0": 273,
    "hybrid-int8-q4_0": 205,
}


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The shapes of SmolVLM-256M as a checkpoint without its numbers: a sparse file."""
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    folder = tmp_path_factory.mktemp("smolvlm")
    raw = dict(known_models()["HuggingFaceTB/SmolVLM-256M-Instruct"].config)
    (folder / "config.json").write_text(json.dumps(raw))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[raw.pop("model_type")](**raw))
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in model.state_dict().items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return source_of(folder)


@pytest.mark.parametrize("name", MEASURED_MB)
def test_a_published_model(smolvlm: Source, name: str) -> None:
    predicted = sum(forecast_bytes(smolvlm, load_scheme(name)).values()) / 1e6
    assert predicted == pytest.approx(MEASURED_MB[name], rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("component", PARTS)
def test_a_graph_tells_nothing_of_this_machine(component: str) -> None:
    """The tracer writes a stack trace into each node: a quarter of a small file, and paths of whoever made it."""
    data = graph("smolvlm", component).read_bytes()
    assert b"mpa_edge/" not in data
    assert b"site-packages" not in data


def test_a_hidden_of_576_falls_back_so_that_k_quants_are_no_smaller() -> None:
    """Rows that are no multiple of 256, as those of SmolVLM-256M."""
    source = source_of(zoo.checkpoint("idefics3", hidden=192))
    sizes = {name: forecast_bytes(source, load_scheme(name))["language"] for name in ("gguf-q4_k_m", "gguf-q4_0")}
    assert sizes["gguf-q4_k_m"] > sizes["gguf-q4_0"]


def test_what_the_model_never_reads_is_not_counted() -> None:
    """LLaVA takes the last layer but one of its tower; SigLIP's pooling head is no part of it."""
    for tower in ("vision_tower.vision_model", "vision_tower"):
        rows = [
            *(Tensor(f"{tower}.encoder.layers.{i}.mlp.fc1.weight", (8, 8), "vision") for i in range(4)),
            Tensor(f"{tower}.head.mlp.fc1.weight", (8, 8), "vision"),
            Tensor("lm_head.weight", (9, 8), "head"),
        ]
        kept = list(used(rows, {"vision_feature_layer": -2, "tie_word_embeddings": True}))
        assert [row.layer for row in kept] == [0, 1, 2]
        assert len(list(used(rows, {"tie_word_embeddings": False}))) == 5


def test_every_scheme_has_a_size_and_the_table_shows_it() -> None:
    source = source_of(WEIGHTS / "student")
    sizes = {name: forecast_bytes(source, load_scheme(name)) for name in names("schemes")}
    table = size_table(source, sizes)
    for name, row in sizes.items():
        line = next(line for line in table.splitlines() if f" {name} " in line)
        for size in (*row.values(), sum(row.values())):
            assert f"{size / 1e6:,.2f}" in line or f"{size / 1e6:,.1f}" in line
        assert all(size > 0 for size in row.values())
        assert disk_need_bytes(source, [load_scheme(name)]) > sum(row.values())
    assert fp32_bytes(source, "embed") == 512 * 256 * 4
    share = sizes["onnx-fp16"]["decoder"] / fp32_bytes(source, "decoder")
    assert 0.5 <= share < 0.55
    assert f"{share:4.0%}" in table


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "idefics3"}')
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(MpaError, match=r"model.safetensors' is damaged \(.*\): copy it from the checkpoint again"):
        forecast_bytes(source_of(tmp_path), load_scheme("onnx-fp32"))
