"""Tokens of an image are those that the models' own processors make."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image

from mpa_edge.planning.model_specs import UnknownModelError, image_tokens, model_spec
from tests.families import zoo

SIZES = ((300, 200), (64, 640), (1000, 1000), (90, 60))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", zoo.MODEL_TYPES)
def test_as_many_tokens_as_the_processor_makes(model_type: str) -> None:
    from transformers import AutoProcessor

    folder = zoo.checkpoint(model_type)
    processor = AutoProcessor.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    token = config.get("image_token_id", config.get("image_token_index"))  # LLaVA's name for it
    marks = 0 if model_type == "llava" else 2  # begin and end; Idefics3 and LFM2-VL name their tiles as well
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    model = model_spec(str(folder))
    for size in SIZES:
        made = processor(text=[prompt], images=[[Image.new("RGB", size)]], return_tensors="pt")
        found = image_tokens(model.config, model.image, size)
        tokens = int((made["input_ids"] == token).sum())
        if model_type in ("idefics3", "smolvlm", "lfm2_vl"):
            assert tokens + 2 <= found.tokens <= tokens + 3 * found.tiles + 4, size
        else:
            assert found.tokens == tokens + marks, size
        frames = 2 if "qwen" in model_type else 1  # Qwen's models get every picture as two frames
        values = made["pixel_values"].numel()
        if model_type == "lfm2_vl":  # padded to the most patches
            values = int(made["pixel_attention_mask"].sum()) * made["pixel_values"].shape[-1]
        assert found.pixels * 3 * frames == values, size


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        # 1024 x 768: scaled to 2048 x 1536, 4 x 3 tiles of 512 and an overview, 64 tokens each
        ("HuggingFaceTB/SmolVLM-256M-Instruct", 13 * 64 + 2 * 12 + 3 + 4),
        # 1036 x 756 in multiples of 28: 37 x 27 groups
        ("Qwen/Qwen2-VL-7B-Instruct", 37 * 27 + 2),
        # 32 x 24 groups of 32 pixels
        ("Qwen/Qwen3-VL-2B-Instruct", 32 * 24 + 2),
        ("Qwen/Qwen3.5-0.8B", 32 * 24 + 2),
        # 19 x 14 groups of 48 pixels, of at most 280
        ("google/gemma-4-E2B-it", 19 * 14 + 2),
        # 4 x 3 tiles of 448 and an overview, 256 tokens each
        ("OpenGVLab/InternVL2-8B", 13 * 256 + 2),
    ],
)
def test_tokens_by_hand(model: str, tokens: int) -> None:
    assert model_spec(model).image_tokens([(1024, 768)]).tokens == tokens


def test_a_mean_image() -> None:
    model = model_spec("Qwen/Qwen2-VL-2B-Instruct")
    assert model.image_tokens([(280, 280), (560, 560)]).tokens == (100 + 400) / 2 + 2


def test_a_missing_value_is_one_line() -> None:
    model = replace(model_spec("Qwen/Qwen2-VL-2B-Instruct"), image={})
    with pytest.raises(UnknownModelError, match=r"lacks or garbles .*: copy it from the checkpoint"):
        model.image_tokens([(100, 100)])
