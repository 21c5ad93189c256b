"""A checkpoint as SmolVLM is published: bfloat16, 49,280 tokens with those of images at the end, its own template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from mpa_edge.config.library import load_scheme
from mpa_edge.exporters import build
from mpa_edge.exporters.publish.layout import write_layout
from mpa_edge.exporters.source import open_source
from mpa_edge.exporters.verify import gate
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from tests.families import zoo
from tests.families.zoo_text import N_TOKENS, N_WORDS, SMOL_TEMPLATE


@pytest.mark.peer
def test_both_formats_are_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (build, gate):  # a process for each costs more than a small model
        monkeypatch.setattr(module, "run_isolated", lambda function, *values, **_: (function(*values), 0))
    checkpoint = zoo.checkpoint("idefics3", full_size=True, dtype="bfloat16", hidden=128, tied=True)
    with safe_open(checkpoint / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
    assert (checkpoint / "chat_template.jinja").read_text(encoding="utf-8") == SMOL_TEMPLATE
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    assert N_WORDS <= config["image_token_id"] < config["text_config"]["vocab_size"] == N_TOKENS
    source = open_source(str(checkpoint), str(tmp_path))
    known = gate.trace_references(source, None, 1)
    for name in ("onnx-int8", "gguf-q8_0"):
        folder, scheme = tmp_path / name, load_scheme(name)
        folder.mkdir()
        files = build.build(build.BuildContext(source, folder, tmp_path / "parts", None, 1), scheme)
        write_layout(source, scheme, folder, None, 1024, 1)
        parity, _ = gate.verify(source, folder, scheme, None, 1, known)
        assert parity.kl < scheme.tolerance.kl_max
    shapes = {tensor.name: tensor.shape for tensor in read_header(folder / files["language"]).tensors}
    assert shapes["token_embd.weight"] == (N_TOKENS, 128)
