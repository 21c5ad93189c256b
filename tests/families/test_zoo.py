"""The zoo itself: folders as people have them, answers that depend on the image, tokenizers that llama.cpp knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from mpa_edge.vlm import fingerprint
from mpa_edge.vlm.transformers import checkpoint
from tests.families import zoo


@pytest.mark.parametrize("model_type", zoo.MODEL_TYPES)
def test_a_checkpoint_is_a_whole_folder(model_type: str) -> None:
    folder = zoo.checkpoint(model_type)
    assert folder == zoo.checkpoint(model_type)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "processor_config.json"} <= names
    assert {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"} <= names
    assert json.loads((folder / "config.json").read_text())["model_type"] == model_type
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] is not None


def test_options_make_other_checkpoints() -> None:
    made = [
        zoo.checkpoint("idefics3", **options) for options in ({}, {"splitting": False}, {"seed": 1}, {"tied": True})
    ]
    assert len({fingerprint(str(folder)) for folder in made}) == len(made)
    assert len(read("qwen2_vl", depth=2)["vision"]) == 2
    assert read("llava", hidden=192)["width"] == 192
    assert read("llava", tower="clip")["tower"] == "clip_vision_model"


def read(model_type: str, **options: object) -> dict[str, object]:
    folder = zoo.checkpoint(model_type, **options)
    config = json.loads((folder / "config.json").read_text())
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        names = list(file.keys())
    layers = {name.split(".blocks.")[1].split(".")[0] for name in names if ".blocks." in name}
    return {
        "vision": layers,
        "width": config["text_config"]["hidden_size"],
        "tower": config["vision_config"]["model_type"],
    }


@pytest.mark.parametrize("model_type", zoo.MODEL_TYPES)
def test_the_image_decides_the_answer(model_type: str) -> None:
    folder = zoo.checkpoint(model_type)
    model, processor = checkpoint.load_model(str(folder), "cpu"), checkpoint.load_processor(str(folder))
    seen, unseen = (last_logits(model, processor, image) for image in (zoo.noise(120, 60), Image.new("RGB", (120, 60))))
    assert (seen - unseen).norm() > 0.4 * seen.norm()


def last_logits(model: object, processor: object, image: Image.Image) -> torch.Tensor:
    text = checkpoint.chat_prompt(processor, "How many?")
    inputs = processor(text=[text], images=[[image]], add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        return model(**inputs).logits[0, -1]


def test_half_made_checkpoints_are_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "_home", lambda: tmp_path / "zoo")
    monkeypatch.setattr(zoo, "_randomize", lambda *_: 1 / 0)
    zoo.checkpoint.cache_clear()
    with pytest.raises(ZeroDivisionError):
        zoo.checkpoint("llava")
    assert not list((tmp_path / "zoo").iterdir())
    zoo.checkpoint.cache_clear()
