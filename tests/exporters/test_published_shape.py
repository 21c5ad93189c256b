"""Checkpoints as SmolVLM and SmolVLM2 are published: bfloat16, 49,280 tokens, those of images at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

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


def smolvlm(folder: Path) -> Path:
    """As transformers 5 saves it."""
    return zoo.checkpoint("idefics3", full_size=True, dtype="bfloat16", hidden=128, tied=True)


def smolvlm2(folder: Path) -> Path:
    """SmolVLM2-500M-Video-Instruct's files: words of transformers 4.47, nothing that is usual, split settings."""
    made = zoo.checkpoint("smolvlm", full_size=True, dtype="bfloat16", hidden=128, usual_tower=True)
    shutil.copytree(made, folder)
    processor = _edit(
        folder / "processor_config.json", lambda _: {"image_seq_len": 16, "processor_class": "SmolVLMProcessor"}
    )
    _edit(folder / "preprocessor_config.json", lambda _: {**processor["image_processor"], "video_sampling": VIDEO})
    _edit(folder / "config.json", _as_published)
    return folder


VIDEO = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}}


def _as_published(config: dict[str, Any]) -> dict[str, Any]:
    text, vision = config["text_config"], config["vision_config"]
    sizes = ("head_dim", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    more = ("num_key_value_heads", "rms_norm_eps", "vocab_size", "max_position_embeddings")
    eyes = ("hidden_size", "image_size", "num_attention_heads", "patch_size")
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "image_token_id": config["image_token_id"],
        "model_type": "smolvlm",
        "pad_token_id": 128002,
        "scale_factor": config["scale_factor"],
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"],
            "is_llama_config": True,
            "model_type": "llama",
            "neftune_noise_alpha": 0.0,
            "pad_token_id": 2,
            "pixel_shuffle_factor": config["scale_factor"],
            "qk_layer_norms": False,
            "rope_interleaved": False,
            "rope_theta": 100000,
            "torch_dtype": "bfloat16",
            "use_resampler": False,
            **{name: text[name] for name in (*sizes, *more)},
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.47.1",
        "use_cache": False,
        "use_reentrant_checkpointing": False,
        "vision_config": {
            "max_image_size": {"longest_edge": vision["image_size"]},
            "model_type": "smolvlm_vision",
            "size": {"longest_edge": 4 * vision["image_size"]},
            "tie_word_embeddings": False,
            "use_base_siglip": False,
            **{name: vision[name] for name in eyes},
        },
        "vocab_size": text["vocab_size"],
    }


def _edit(path: Path, change: Any) -> dict[str, Any]:
    """What the file held before."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(change(before)), encoding="utf-8")
    return before


@pytest.mark.peer
@pytest.mark.parametrize(
    ("published", "schemes"),
    # llama.cpp's converter reads the files itself; ONNX graphs are made from the model that transformers loads
    [(smolvlm, ("onnx-int8", "gguf-q8_0")), (smolvlm2, ("gguf-q8_0",))],
    ids=["SmolVLM", "SmolVLM2-500M-Video-Instruct"],
)
def test_an_export_is_the_same_model(
    published: Any, schemes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (build, gate):  # a process for each costs more than a small model
        monkeypatch.setattr(module, "run_isolated", lambda function, *values, **_: (function(*values), 0))
    checkpoint = published(tmp_path / "checkpoint")
    with safe_open(checkpoint / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
    assert (checkpoint / "chat_template.jinja").read_text(encoding="utf-8") == SMOL_TEMPLATE
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    assert N_WORDS <= config["image_token_id"] < config["text_config"]["vocab_size"] == N_TOKENS
    source = open_source(str(checkpoint), str(tmp_path))
    known = gate.trace_references(source, None, 1)
    for name in schemes:
        folder, scheme = tmp_path / name, load_scheme(name)
        folder.mkdir()
        files = build.build(build.BuildContext(source, folder, tmp_path / "parts", None, 1), scheme)
        write_layout(source, scheme, folder, None, 1024, 1)
        parity, _ = gate.verify(source, folder, scheme, None, 1, known)
        assert parity.kl < scheme.tolerance.kl_max
    shapes = {tensor.name: tensor.shape for tensor in read_header(folder / files["language"]).tensors}
    assert shapes["token_embd.weight"] == (N_TOKENS, 128)
