"""TinyLLaVA in the format of TinyLLaVA_Factory against its own code: prompts, pixels and logits, recorded in golden."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mpa_edge.errors import MpaError
from mpa_edge.vlm.transformers import checkpoint
from mpa_edge.vlm.transformers.files import local_folder
from tests.docs.markdown import ROOT
from tests.families import zoo, zoo_own

RECORDED = json.loads((ROOT / "tests" / "golden" / "own_formats" / "tinyllava_2b.json").read_text(encoding="utf-8"))
CASES = RECORDED["cases"]
AUTHORS_IMAGE_ID = -200
SAME_LOGITS, SAME_PIXELS = 1e-4, 1e-5


@functools.cache
def folder(aspect: str) -> Path:
    """The checkpoint in the format of transformers; `aspect`: whether images are padded."""
    return local_folder(str(zoo.checkpoint("tinyllava_2b", image_aspect_ratio=aspect)))


@functools.cache
def processor(aspect: str) -> Any:
    """With Pillow, as the authors scale."""
    from transformers import AutoImageProcessor

    found = checkpoint.load_processor(str(folder(aspect)))
    found.image_processor = AutoImageProcessor.from_pretrained(folder(aspect), backend="pil")
    return found


def noise(width: int, height: int) -> Image.Image:
    """The image of the golden file."""
    random = np.random.default_rng([width, height])
    slope = np.linspace(0, 180, width)[None, :, None] * np.ones((height, 1, 3))
    return Image.fromarray((slope + random.integers(0, 75, (height, width, 3))).astype(np.uint8))


def inputs(case: dict[str, Any]) -> Any:
    own = processor(case["aspect"])
    prompt = checkpoint.chat_prompt(own, case["question"])
    return own(text=[prompt], images=[[noise(*case["size"])]], add_special_tokens=False, return_tensors="pt")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['aspect']} {case['size']}")
def test_prompt_pixels_and_logits_are_the_authors(case: dict[str, Any]) -> None:
    made = inputs(case)
    ids, image_id = made["input_ids"][0].tolist(), processor(case["aspect"]).image_token_id
    assert len(ids) == case["length"]
    once = [token for i, token in enumerate(ids) if token != image_id or ids[i - 1] != image_id]
    assert [AUTHORS_IMAGE_ID if token == image_id else token for token in once] == case["ids"]
    sampled = made["pixel_values"][0, :, ::37, ::29].reshape(-1)
    assert (sampled - torch.tensor(case["pixels"])).abs().max() < SAME_PIXELS
    model = loaded(case["aspect"])
    with torch.inference_mode():
        logits = model(**made).logits[0]
    for place, expected in case["logits"].items():
        assert (logits[int(place), ::9] - torch.tensor(expected)).abs().max() < SAME_LOGITS
    assert int(logits[-1].argmax()) == case["next"]


@functools.cache
def loaded(aspect: str) -> Any:
    return checkpoint.load_model(str(folder(aspect)), "cpu")


def test_an_answer_ends_with_the_templates_end() -> None:
    own = processor("square")
    assert checkpoint.chat_completion(own, "How many?", "two") == " two<|endoftext|>"
    generation = json.loads((folder("square") / "generation_config.json").read_text())
    assert generation["eos_token_id"] == own.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"connector_type": "resampler"}, r"connector_type is 'resampler' in config.json, and must be mlp2x_gelu"),
        ({"image_aspect_ratio": "anyres"}, r"image_aspect_ratio is 'anyres'"),
        ({"text_config": {"model_type": "phi"}}, r"decoder is 'phi' in config.json, and must be stablelm"),
        ({"vision_config": {"model_type": "dinov2"}}, r"vision tower is 'dinov2'"),
        ({"vision_config": None}, r"lacks vision_config or text_config"),
    ],
)
def test_what_llava_does_not_compute_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(MpaError, match=says):
        local_folder(str(zoo_own.tinyllava_2b(tmp_path, **change)))


def test_a_checkpoint_without_its_tokenizer_says_how_to_get_it(tmp_path: Path) -> None:
    own = zoo_own.tinyllava_2b(tmp_path)
    (own / "tokenizer.json").unlink()
    with pytest.raises(
        MpaError, match=r"tokenizer\.json' is missing: save the tokenizer that config\.json names there"
    ):
        local_folder(str(own))
