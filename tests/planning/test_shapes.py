"""Parameters are those of the modules of transformers, and those that the hub counts."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.planning.model_specs import VISION_DEFAULTS, model_spec, read_shapes
from mpa_edge.planning.records import known_models
from tests.families import zoo

TABLE = known_models()
WITHIN = 0.01  # norms, biases and positions are not counted
WITHIN_TINY = 0.1
OWN_FORMAT = "internvl_chat"  # its authors' program code; the layers are those of internvl


@pytest.mark.parametrize("name", [name for name, entry in TABLE.items() if entry.parameters])
def test_the_hub_counts_the_same(name: str) -> None:
    assert read_shapes(TABLE[name].config, name).parameters == pytest.approx(TABLE[name].parameters, rel=WITHIN)


def test_nearly_every_entry_is_checked() -> None:
    """Against the hub's number, or against the modules of transformers; for one model neither can be had."""
    unchecked = [n for n, e in TABLE.items() if e.parameters is None and e.config["model_type"] == OWN_FORMAT]
    assert unchecked == ["OpenGVLab/InternVL2-4B"]
    assert {entry.config["model_type"] for entry in TABLE.values()} >= {"idefics3", "qwen2_vl", OWN_FORMAT}


def counted(config: dict[str, Any]) -> int:
    """Parameters of the modules that transformers makes of a config.json; no memory is taken."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    values = copy.deepcopy(config)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, entry in TABLE.items() if entry.config["model_type"] != OWN_FORMAT])
def test_the_modules_have_as_many(name: str) -> None:
    assert read_shapes(TABLE[name].config, name).parameters == pytest.approx(counted(TABLE[name].config), rel=WITHIN)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", zoo.MODEL_TYPES)
def test_small_checkpoints_have_as_many(model_type: str) -> None:
    from safetensors import safe_open

    folder = zoo.checkpoint(model_type)
    config = json.loads((folder / "config.json").read_text())
    assert read_shapes(config, model_type).parameters == pytest.approx(counted(config), rel=WITHIN_TINY)
    assert model_spec(str(folder)).shapes.parameters == pytest.approx(counted(config), rel=WITHIN_TINY)
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert read_shapes(config, model_type).parameters == pytest.approx(stored, rel=WITHIN_TINY)


@pytest.mark.slow
def test_a_clip_tower_is_counted() -> None:
    config = json.loads((zoo.checkpoint("llava", tower="clip") / "config.json").read_text())
    assert read_shapes(config, "llava").parameters == pytest.approx(counted(config), rel=WITHIN_TINY)


def test_the_built_in_models() -> None:
    # model.safetensors holds fp16: two bytes each, and a header
    assert model_spec("nursery:student").shapes.parameters * 2 == pytest.approx(5_598_096, rel=0.01)
    assert model_spec("nursery:teacher").shapes.parameters * 2 == pytest.approx(11_709_200, rel=0.01)


def test_every_family_can_be_planned() -> None:
    from mpa_edge.families import families

    assert {kind for family in families().values() for kind in family.model_types} <= set(VISION_DEFAULTS)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gpt2"}, "no sizes known for model type 'gpt2': use one of "),
        ({"model_type": "idefics3", "vision_config": {}}, "lacks or garbles 'hidden_size': copy the config.json"),
        ({"model_type": "qwen2_vl"}, "lacks or garbles 'vision_config': copy the config.json"),
        ({"model_type": "llava", "vision_config": 7, "text_config": {}}, "copy the config.json that belongs"),
    ],
)
def test_a_wrong_config_is_one_line(config: dict[str, Any], words: str) -> None:
    with pytest.raises(MpaError) as error:
        read_shapes(config, "here")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
