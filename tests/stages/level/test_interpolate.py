"""Part of the way from the student to the tuned student: adapters and whole models."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from mpa_edge.config.recipe import LevelConfig
from mpa_edge.families import family_of
from mpa_edge.nursery.models import build_model, build_processor
from mpa_edge.stages.level.interpolate import between, interpolate, scaled


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    build_model("student").save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


def changed(model, seed: int = 1):
    """The model with every trainable weight moved."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def test_half_of_an_adapter_is_half_of_its_change(base, tmp_path) -> None:
    start = build_model("student")
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    targets = family_of("idefics3").target_modules(("language", "vision", "connector"))
    changed(get_peft_model(start, LoraConfig(r=4, target_modules=targets))).save_pretrained(tmp_path)

    def merged():
        model = PeftModel.from_pretrained(build_model("student"), str(tmp_path)).merge_and_unload()
        return model.state_dict()

    whole = merged()
    interpolate(tmp_path, str(base), 0.5)
    half = merged()
    moved = [name for name in before if not torch.equal(before[name], whole[name])]
    assert len(moved) > 20
    for name in before:
        torch.testing.assert_close(half[name], (before[name] + whole[name]) / 2, atol=1e-6, rtol=0)


def test_half_of_a_whole_model_lies_in_the_middle(base, tmp_path) -> None:
    tuned = changed(build_model("student"))
    after = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    tuned.save_pretrained(tmp_path)
    before = build_model("student").state_dict()
    interpolate(tmp_path, str(base), 0.5)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        torch.testing.assert_close(tensor, (before[name] + after[name]) / 2, atol=1e-6, rtol=0)


def test_the_whole_change_touches_no_file(base, tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not even a tensor file")
    interpolate(tmp_path, str(base), 1.0)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == b"not even a tensor file"


def test_only_one_of_the_two_lora_matrices_is_scaled() -> None:
    one = torch.ones(2)
    made = scaled({"x.lora_A.weight": one, "x.lora_B.weight": one}, 0.25)
    assert made["x.lora_A.weight"].tolist() == [1, 1]
    assert made["x.lora_B.weight"].tolist() == [0.25, 0.25]


def test_the_type_of_the_tuned_weights_stays() -> None:
    made = between({"w": torch.zeros(2)}, {"w": torch.ones(2, dtype=torch.float16)}, 0.5)
    assert made["w"].dtype == torch.float16
    assert made["w"].tolist() == [0.5, 0.5]


def test_a_dora_update_cannot_be_scaled() -> None:
    with pytest.raises(ValueError, match="use strength: 1.0"):
        LevelConfig(dora=True, strength=0.5)
    assert LevelConfig(dora=True).strength == 1.0
