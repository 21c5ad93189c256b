"""Published sizes instead of tiny ones: the modules of real checkpoints, without their weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from mpa_edge.families import REWRITTEN, family_of
from mpa_edge.planning.records import known_models
from tests.families.test_contract import HOME, is_in

MOST_LAYERS = 4
# three of the MLP, and the projections of attention of a gated delta net or of a short convolution
MATRICES = {"linear_attention": 8, "conv": 5}
OF_FAMILIES = sorted(name for name, entry in known_models().items() if str(entry.config["model_type"]) not in REWRITTEN)


def built(name: str) -> Any:
    """The model of a published config.json on the meta device, a few layers deep: names and shapes, no numbers."""
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    raw = dict(known_models()[name].config)
    config = CONFIG_MAPPING[raw.pop("model_type")](**raw)
    config.text_config.num_hidden_layers = MOST_LAYERS
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = config.text_config.layer_types[:MOST_LAYERS]
    if getattr(config.text_config, "num_kv_shared_layers", 0):
        config.text_config.num_kv_shared_layers = 0  # its last layers look into the caches of earlier ones
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def test_there_are_all_families() -> None:
    kinds = {str(known_models()[name].config["model_type"]) for name in OF_FAMILIES}
    assert {"idefics3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl", "llava", "lfm2_vl"} <= kinds


@pytest.mark.parametrize("name", OF_FAMILIES)
def test_lora_goes_where_it_says_in_a_published_model(name: str) -> None:
    model = built(name)
    family = family_of(model.config.model_type)
    linears = [
        one
        for one, module in model.named_modules()
        if isinstance(module, nn.Linear) and not one.endswith("patch_embedding")
    ]
    for part, home in HOME[family.name].items():
        regex = re.compile(family.target_modules((part,)))
        hit = {one for one in linears if regex.fullmatch(one)}
        assert hit == {one for one in linears if is_in(home, one)}, part
        assert hit
    text = re.compile(family.target_modules(("language",)))
    kinds = getattr(model.config.text_config, "layer_types", None) or [""] * MOST_LAYERS
    # Gemma 4 looks up embeddings for each layer: a projection for all, a gate and a projection in each
    more = 1 + 2 * len(kinds) if getattr(model.config.text_config, "hidden_size_per_layer_input", 0) else 0
    assert len([one for one in linears if text.fullmatch(one)]) == sum(MATRICES.get(kind, 7) for kind in kinds) + more
