"""An exported folder in an unmodified @huggingface/transformers: it loads, and says the same words."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpa_edge.config.library import load_scheme
from mpa_edge.exporters.onnx.quantize import quantize_component
from mpa_edge.exporters.publish.layout import file_name, write_layout
from mpa_edge.exporters.source import open_source
from mpa_edge.exporters.verify.probes import drawn
from mpa_edge.exporters.verify.reference import Checkpoint
from mpa_edge.types import Request
from mpa_edge.vlm.onnxruntime.model import OnnxVLM
from mpa_edge.vlm.transformers.checkpoint import chat_prompt
from tests.exporters import javascript
from tests.vlm.exported import checkpoint, onnx_folder

pytestmark = pytest.mark.peer

# sizes that the image processors leave alone, so that only arithmetic is left to differ
SIZES = {
    "student": (128, 64),
    "smolvlm": (256, 128),
    "qwen2_vl": (112, 84),
    "qwen2_5_vl": (112, 168),
    "qwen3_vl": (128, 192),
    "qwen3_5": (128, 192),
    "gemma4": (480, 336),
    "llava": (112, 112),
    "lfm2_vl": (128, 96),
    "llava:clip": (112, 112),
    "llava:clip:full": (112, 112),
}
# these make an overview, and the client scales with another filter: only an image of one colour stays the same
OVERVIEW = ("student", "smolvlm")
QUESTION, N_TOKENS = "How many red shapes are there?", 20


@functools.cache
def image_of(which: str, plain: bool = False) -> Image.Image:
    return Image.new("RGB", SIZES[which], (200, 30, 90)) if plain else drawn(*SIZES[which], seed=3)


@functools.cache
def model(which: str) -> Checkpoint:
    return Checkpoint(checkpoint(which), {}, 1)


@functools.cache
def torch_side(which: str, plain: bool = False) -> tuple[dict[str, np.ndarray], list[int]]:
    """(everything the processor made, greedy tokens) of the checkpoint; its image processor is the Pillow one."""
    feed = model(which).inputs([Request(image_of(which, plain), QUESTION, N_TOKENS)])
    limits = {"max_new_tokens": N_TOKENS, "min_new_tokens": N_TOKENS, "do_sample": False}
    tokens = model(which).model.generate(**feed, **limits)[0, feed["input_ids"].shape[1] :].tolist()
    arrays = {name: value.numpy() for name, value in feed.items() if name != "mm_token_type_ids"}
    if "pixel_attention_mask" in arrays:
        arrays["pixel_attention_mask"] = arrays["pixel_attention_mask"].astype(int if which == "lfm2_vl" else bool)
    return arrays, tokens


@functools.cache
def of_fp32(which: str, plain: bool = False) -> dict[str, Any]:
    """What the client says with the plain export; asked once for all tests."""
    with tempfile.TemporaryDirectory() as work:
        return said(which, onnx_folder(which), Path(work), plain)


def said(which: str, folder: Path, work: Path, plain: bool = False) -> dict[str, Any]:
    image_of(which, plain).save(work / "image.png")
    feed = torch_side(which, plain)[0]
    return javascript.generate(folder, work / "image.png", QUESTION, feed, N_TOKENS, work)


@pytest.mark.parametrize("which", SIZES)
def test_torchs_pixels_give_torchs_tokens(which: str) -> None:
    found = of_fp32(which)
    assert found["fixed"] == torch_side(which)[1]
    assert set(found["dtypes"].values()) == {"fp32"}


@pytest.mark.parametrize("which", SIZES)
def test_its_own_processor_reads_the_folder_and_gives_torchs_tokens(which: str) -> None:
    plain = which in OVERVIEW
    feed, tokens = torch_side(which, plain)
    own = of_fp32(which, plain)["own"]
    assert own["text"] == chat_prompt(model(which).processor, QUESTION)
    assert own["input_ids"] == feed["input_ids"][0].tolist()
    assert own["pixels"]["dims"] == list(feed["pixel_values"].shape)
    assert own["pixels"]["max_difference"] < 1e-5
    assert own["tokens"] == tokens


@functools.cache
def quantized(scheme_name: str, work: Path) -> Path:
    """The built-in student by another scheme, whole folder."""
    scheme, source, folder = load_scheme(scheme_name), open_source(str(checkpoint("student")), out="runs"), work / "it"
    (folder / "onnx").mkdir(parents=True)
    for component, precision in scheme.components.items():
        plain = onnx_folder("student") / file_name("onnx", component, "fp32")
        quantize_component(plain, folder / file_name("onnx", component, precision), component, precision, scheme, None)
    write_layout(source, scheme, folder, None, 2048, 1)
    return folder


@pytest.mark.parametrize("scheme", ["onnx-fp16", "onnx-int8", "onnx-q4", "onnx-q4f16"])
def test_fewer_bits_load_by_the_folders_own_config_and_say_what_python_says(scheme: str, tmp_path: Path) -> None:
    folder = quantized(scheme, tmp_path)
    found = said("student", folder, tmp_path)
    components = load_scheme(scheme).components
    names = {"vision": "vision_encoder", "embed": "embed_tokens", "decoder": "decoder_model_merged"}
    chosen = {name: components[part] for part, name in names.items()}
    # the client calls two of its sessions differently from their files
    assert sorted(found["dtypes"].values()) == sorted(chosen.values())
    ours = OnnxVLM(folder, name="ours", threads=1)
    [trace] = ours.trace([Request(image_of("student"), QUESTION, N_TOKENS)])
    ends = set(ours.artifact.tokens.ends)
    n = next((i for i, token in enumerate(trace.tokens) if token in ends), len(trace.tokens))
    assert n > 0
    assert found["fixed"][:n] == list(trace.tokens[:n])


def test_a_question_that_reads_another_image_gets_another_answer(tmp_path: Path) -> None:
    """The comparison above can fail: the client does look."""
    feed = dict(torch_side("smolvlm")[0])
    feed["pixel_values"] = feed["pixel_values"][..., ::-1].copy()
    image_of("smolvlm").save(tmp_path / "image.png")
    found = javascript.generate(onnx_folder("smolvlm"), tmp_path / "image.png", QUESTION, feed, N_TOKENS, tmp_path)
    assert found["fixed"] != torch_side("smolvlm")[1]


def test_weights_outside_the_graph_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpa_edge.exporters.onnx import files
    from mpa_edge.exporters.onnx.export import export_component

    monkeypatch.setattr(files, "EMBEDDED_BYTES", 1000)
    folder = tmp_path / "outside"
    shutil.copytree(onnx_folder("student"), folder, ignore=shutil.ignore_patterns("decoder*"))
    export_component(checkpoint("student"), "decoder", folder / file_name("onnx", "decoder", "fp32"))
    write_layout(open_source(str(checkpoint("student")), out="runs"), load_scheme("onnx-fp32"), folder, None, 2048, 1)
    config = json.loads((folder / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] == {"decoder_model_merged.onnx": 1}
    assert said("student", folder, tmp_path)["fixed"] == torch_side("student")[1]


def test_a_missing_node_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(javascript.shutil, "which", lambda program: None)
    with pytest.raises(RuntimeError, match="the JavaScript peer needs node"):
        javascript.client.__wrapped__()
