"""TinyLLaVA in its authors' two formats against TinyLLaVA_Factory: prompts, pixels and logits, recorded in golden."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mpa_edge.errors import MpaError
from mpa_edge.vlm.transformers import checkpoint
from mpa_edge.vlm.transformers.files import local_folder
from tests.docs.markdown import ROOT
from tests.families import zoo, zoo_own

CASES = [
    (model, case)
    for model in ("tinyllava_2b", "tinyllava_older")
    for case in json.loads((ROOT / "tests" / "golden" / "own_formats" / f"{model}.json").read_text("utf-8"))["cases"]
]
AUTHORS_IMAGE_ID = -200
SAME_LOGITS, SAME_PIXELS = 1e-4, 1e-5


@functools.cache
def folder(model: str, aspect: str) -> Path:
    """The checkpoint in the format of transformers; `aspect`: whether images are padded."""
    return local_folder(str(zoo.checkpoint(model, image_aspect_ratio=aspect)))


@functools.cache
def processor(model: str, aspect: str) -> Any:
    """With Pillow, as the authors scale."""
    from transformers import AutoImageProcessor

    found = checkpoint.load_processor(str(folder(model, aspect)))
    found.image_processor = AutoImageProcessor.from_pretrained(folder(model, aspect), backend="pil")
    return found


def noise(width: int, height: int) -> Image.Image:
    """The image of the golden file."""
    random = np.random.default_rng([width, height])
    slope = np.linspace(0, 180, width)[None, :, None] * np.ones((height, 1, 3))
    return Image.fromarray((slope + random.integers(0, 75, (height, width, 3))).astype(np.uint8))


@functools.cache
def loaded(model: str, aspect: str) -> Any:
    return checkpoint.load_model(str(folder(model, aspect)), "cpu")


@pytest.mark.parametrize(("model", "case"), CASES, ids=[f"{m} {case['aspect']} {case['size']}" for m, case in CASES])
def test_prompt_pixels_and_logits_are_the_authors(model: str, case: dict[str, Any]) -> None:
    own = processor(model, case["aspect"])
    prompt = checkpoint.chat_prompt(own, case["question"])
    made = own(text=[prompt], images=[[noise(*case["size"])]], add_special_tokens=False, return_tensors="pt")
    ids, image_id = made["input_ids"][0].tolist(), own.image_token_id
    assert len(ids) == case["length"]
    once = [token for i, token in enumerate(ids) if token != image_id or ids[i - 1] != image_id]
    assert [AUTHORS_IMAGE_ID if token == image_id else token for token in once] == case["ids"]
    sampled = made["pixel_values"][0, :, ::37, ::29].reshape(-1)
    assert (sampled - torch.tensor(case["pixels"])).abs().max() < SAME_PIXELS
    with torch.inference_mode():
        logits = loaded(model, case["aspect"])(**made).logits[0]
    for place, expected in case["logits"].items():
        assert (logits[int(place), ::9] - torch.tensor(expected)).abs().max() < SAME_LOGITS
    assert int(logits[-1].argmax()) == case["next"]


def test_an_answer_ends_with_the_templates_end() -> None:
    own = processor("tinyllava_2b", "square")
    assert checkpoint.chat_completion(own, "How many?", "two") == " two<|endoftext|>"
    generation = json.loads((folder("tinyllava_2b", "square") / "generation_config.json").read_text())
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


def test_an_older_checkpoint_without_its_tower_is_refused(tmp_path: Path) -> None:
    own = zoo_own.tinyllava_older(tmp_path)
    for path in own.glob("*.safetensors"):
        kept = {name: tensor for name, tensor in load_file(path).items() if "vision_tower" not in name}
        save_file(kept, path)
    with pytest.raises(MpaError, match=r"holds no SigLIP tower"):
        local_folder(str(own))


@pytest.mark.parametrize("make", [zoo_own.tinyllava_2b, zoo_own.tinyllava_older])
def test_a_checkpoint_without_its_tokenizer_says_whose_it_is(make: Any, tmp_path: Path) -> None:
    own = make(tmp_path)
    (own / "tokenizer.json").unlink()
    with pytest.raises(MpaError, match=r"json' is missing: put that of stabilityai/stablelm-2-zephyr-1_6b into a copy"):
        local_folder(str(own))
