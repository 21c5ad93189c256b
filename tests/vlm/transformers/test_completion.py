"""Checkpoints as they were published before processors knew everything: filled in, the same model as with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tokenizers.processors import TemplateProcessing

from mpa_edge.errors import MpaError
from mpa_edge.vlm.transformers import checkpoint
from mpa_edge.vlm.transformers.completion import with_start
from tests.families import zoo


@pytest.fixture(params=["siglip", "clip"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """(a LLaVA checkpoint of today, the same as of 2024: an image processor, a tokenizer, no more)."""
    today = zoo.checkpoint("llava", tower=request.param)
    folder = Path(shutil.copytree(today, tmp_path / "old"))
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor["image_processor"]))
    for name in ("processor_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    return today, folder


def test_an_old_llava_takes_as_many_tokens_as_a_new_one(old: tuple[Path, Path]) -> None:
    today, before = (checkpoint.load_processor(str(folder)) for folder in old)
    assert isinstance(before.patch_size, int)
    picture = Image.effect_noise((90, 60), 90).convert("RGB")
    feeds = [
        processor(text=["a <image> b"], images=[[picture]], add_special_tokens=False, return_tensors="pt")
        for processor in (today, before)
    ]
    assert feeds[0]["input_ids"].tolist() == feeds[1]["input_ids"].tolist()
    assert (feeds[0]["pixel_values"] == feeds[1]["pixel_values"]).all()


def test_it_is_asked_as_its_card_says_and_answers_end(old: tuple[Path, Path]) -> None:
    processor = checkpoint.load_processor(str(old[1]))
    assert checkpoint.chat_prompt(processor, "What is it?") == "USER: <image>\nWhat is it?\nASSISTANT:"
    assert checkpoint.chat_completion(processor, "What is it?", "red") == " red</s>"


def test_what_is_filled_in_is_saved(old: tuple[Path, Path], tmp_path: Path) -> None:
    processor = checkpoint.load_processor(str(old[1]))
    processor.save_pretrained(tmp_path / "saved")
    shutil.copy(old[1] / "config.json", tmp_path / "saved")
    again = checkpoint.load_processor(str(tmp_path / "saved"))
    for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "chat_template"):
        assert getattr(again, name) == getattr(processor, name)


def test_a_family_without_a_known_template_says_so(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(zoo.checkpoint("internvl"), tmp_path / "bare"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(MpaError, match=r"has no chat template: put its chat_template\.jinja into the folder"):
        checkpoint.load_processor(str(folder))


def test_a_start_token_that_the_template_leaves_out_is_there_once() -> None:
    tokenizer = checkpoint.load_processor(str(zoo.checkpoint("llava"))).tokenizer
    assert with_start(tokenizer, "USER: x") == "USER: x"  # this one adds none
    adding = checkpoint.load_processor(str(zoo.checkpoint("llava"))).tokenizer
    adding._tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", adding.bos_token_id)])
    assert adding("x")["input_ids"][0] == adding.bos_token_id
    assert with_start(adding, "USER: x") == with_start(adding, "<s>USER: x") == "<s>USER: x"
