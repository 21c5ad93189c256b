"""InternVL2 in OpenGVLab's own format against their own code: prompts, tiles and logits, recorded in tests/golden."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mpa_edge.vlm.transformers import checkpoint
from mpa_edge.vlm.transformers.files import local_folder
from tests.docs.markdown import ROOT
from tests.families import zoo, zoo_own

SAME_LOGITS, SAME_PIXELS = 1e-4, 0.02
"""Logits have a standard deviation of 2.5. Pixels: the authors scale with Pillow, transformers with torchvision."""


@cache
def golden(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "tests" / "golden" / "own_formats" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["internvl2_2b", "internvl2_4b"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str) -> Path:
    """The checkpoint in the format of transformers."""
    return local_folder(str(zoo.checkpoint(name)))


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return checkpoint.load_processor(str(folder))


def noise(width: int, height: int) -> Image.Image:
    """The image of the golden file."""
    random = np.random.default_rng([width, height])
    slope = np.linspace(0, 180, width)[None, :, None] * np.ones((height, 1, 3))
    return Image.fromarray((slope + random.integers(0, 75, (height, width, 3))).astype(np.uint8))


def test_texts_are_split_as_by_the_authors_tokenizer(name: str, processor: Any) -> None:
    before = " " if name == "internvl2_4b" else ""  # which LlamaTokenizer writes before a text; our template does
    for text, ids in golden(name)["texts"].items():
        assert processor.tokenizer(before + text, add_special_tokens=True).input_ids == ids
        assert processor.tokenizer.decode(ids[1:]) == before + text


def test_prompt_and_tiles_are_the_authors(name: str, processor: Any) -> None:
    for case in golden(name)["cases"]:
        prompt = checkpoint.chat_prompt(processor, case["question"])
        inputs = processor(
            text=[prompt], images=[[noise(*case["size"])]], add_special_tokens=False, return_tensors="pt"
        )
        assert inputs["input_ids"][0].tolist() == case["ids"]
        assert inputs["pixel_values"].shape[0] == case["tiles"]
        means = inputs["pixel_values"].mean((1, 2, 3)).tolist()
        assert means == pytest.approx(case["pixel_means"], abs=SAME_PIXELS)


def test_grids_of_tiles_are_the_authors(name: str, processor: Any) -> None:
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    images = processor.image_processor
    for size, grid in golden(name)["grids"].items():
        width, height = map(int, size.split("x"))
        edge = images.size["height"]
        found = get_optimal_tiled_canvas((height, width), (edge, edge), images.min_patches, images.max_patches)
        assert list(found) == grid, size


def test_an_answer_ends_with_the_authors_stop_word(name: str, folder: Path, processor: Any) -> None:
    assert processor.tokenizer.eos_token_id == golden(name)["stop"]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == golden(name)["stop"]
    assert checkpoint.chat_completion(processor, "How many?", "two") == "two" + processor.tokenizer.eos_token


def test_logits_are_those_of_the_authors_code(name: str, folder: Path) -> None:
    model = checkpoint.load_model(str(folder), "cpu")
    for case in golden(name)["cases"]:
        pixels = golden_pixels(case)
        with torch.inference_mode():
            logits = model(
                input_ids=torch.tensor([case["ids"]]),
                attention_mask=torch.ones(1, len(case["ids"]), dtype=torch.long),
                pixel_values=pixels,
            ).logits[0]
        for place, expected in case["logits"].items():
            found = logits[int(place), ::9]
            assert (found - torch.tensor(expected)).abs().max() < SAME_LOGITS
        assert int(logits[-1].argmax()) == case["next"]


def golden_pixels(case: dict[str, Any]) -> torch.Tensor:
    """The authors' tiles: cut and scaled by Pillow, as their dynamic_preprocess does."""
    image, edge = noise(*case["size"]), zoo_own.IMAGE_PX
    columns, rows = case["grid"]
    whole = image.resize((columns * edge, rows * edge))
    places = [(column * edge, row * edge) for row in range(rows) for column in range(columns)]
    cut = [whole.crop((x, y, x + edge, y + edge)) for x, y in places]
    cut += [image.resize((edge, edge))] if len(cut) > 1 else []
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    tiles = torch.stack([torch.from_numpy(np.array(tile)) for tile in cut]) / 255
    return ((tiles - mean) / std).permute(0, 3, 1, 2)
