"""Prompts of an export: the bytes and the ids that the checkpoint's own processor makes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mpa_edge.artifact import Artifact, PromptParts, Tokens
from mpa_edge.exporters.publish.layout import known_tokens, prompt_parts
from mpa_edge.nursery import models
from mpa_edge.runs.files import read_json
from mpa_edge.vlm.shared.prompts import (
    THOUGHT,
    PromptTokenizer,
    prompt_text,
    without_special_tokens,
    without_thought,
)
from mpa_edge.vlm.transformers import checkpoint
from tests.families import zoo

MODEL_TYPES = ("student", *zoo.MODEL_TYPES)
IMAGE = Image.new("RGB", (64, 64), "red")
# what stands in the place of an image is another module's work: here only that it stands there
EXPANSIONS = {"idefics3": "<row_1_col_1><image><image>\n", "internvl": "<img><IMG_CONTEXT></img>"}


@functools.cache
def processor(which: str) -> Any:
    return models.build_processor() if which == "student" else checkpoint.load_processor(str(zoo.checkpoint(which)))


@functools.cache
def parts(which: str, tmp: Path) -> tuple[Artifact, PromptTokenizer]:
    """What an export knows of a prompt, and its tokenizer."""
    folder = tmp / which
    processor(which).save_pretrained(folder)
    config = {} if which == "student" else read_json(zoo.checkpoint(which) / "config.json")
    values: dict[str, Any] = {
        "name": which,
        "scheme": "x",
        "format": "onnx",
        "family": "x",
        "model_type": "x",
        "files": {},
        "image": {},
        "text": {},
        "context_tokens": 1,
        "prompt": prompt_parts(processor(which)),
        "tokens": known_tokens(processor(which), folder, config),
    }
    artifact = Artifact(**values)
    return artifact, PromptTokenizer(folder, artifact)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prompts")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.mark.parametrize("which", MODEL_TYPES)
@settings(deadline=None)  # the first one loads a processor
@given(data=st.data())
def test_text_and_ids_are_the_processors(which: str, made: Path, data: st.DataObject) -> None:
    artifact, tokenizer = parts(which, made)
    special = st.sampled_from(artifact.tokens.special)
    prompt = data.draw(st.lists(st.one_of(texts, special), max_size=5).map("".join))
    whole = checkpoint.chat_prompt(processor(which), prompt)
    assert prompt_text(artifact, prompt, artifact.prompt.placeholder) == whole
    expansion = EXPANSIONS.get(which, artifact.prompt.placeholder * 3)
    expanded = whole.replace(artifact.prompt.placeholder, expansion, 1)
    expected = processor(which).tokenizer(expanded, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode(prompt_text(artifact, prompt, expansion)) == expected


@pytest.mark.parametrize("which", MODEL_TYPES)
@settings(deadline=None)  # the first one loads a processor
@given(seed=st.integers(0, 2**32 - 1))
def test_answers_are_decoded_as_the_checkpoint_does_it(which: str, made: Path, seed: int) -> None:
    _, tokenizer = parts(which, made)
    hf = processor(which)
    ids = np.random.default_rng(seed).integers(0, len(hf.tokenizer), 8).tolist()
    known = hf.tokenizer.get_added_vocab()
    text = hf.tokenizer.decode(without_thought(ids, [known.get(t) for t in THOUGHT]), skip_special_tokens=True)
    assert tokenizer.decode(ids) == without_special_tokens(text, checkpoint.special_tokens(hf)).strip()


def test_without_special_tokens_there_is_nothing_to_take_out() -> None:
    assert without_special_tokens("a<image>b", ()) == "a<image>b"


def test_an_image_takes_the_place_of_the_templates_placeholder_only() -> None:
    artifact = Artifact(
        name="a",
        scheme="x",
        format="onnx",
        family="x",
        model_type="x",
        files={},
        image={},
        text={},
        context_tokens=1,
        prompt=PromptParts(before="<User><image>", after="<end>", placeholder="<image>"),
        tokens=Tokens(image="<image>", image_id=1, ends=(2,), special=("<image>", "<end>")),
    )
    assert prompt_text(artifact, "<ima<end>ge>?", "<i><i>") == "<User><i><i>?<end>"


def test_a_tokenizer_saved_while_it_padded_and_cut_does_neither(made: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    artifact, whole = parts("student", made)
    saved = Tokenizer.from_file(str(made / "student" / "tokenizer.json"))
    saved.enable_padding(length=64)
    saved.enable_truncation(3)
    saved.save(str(tmp_path / "tokenizer.json"))
    text = "What is the highest value?"
    assert PromptTokenizer(tmp_path, artifact).encode(text) == whole.encode(text)
    assert len(whole.encode(text)) > 3
