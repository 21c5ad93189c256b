"""Shapes, tokenizer and processor of the pair: what a later export needs is checked before the weights exist."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpa_edge.nursery import models, world
from mpa_edge.nursery.draw import HEIGHT_PX, WIDTH_PX, Image

K_QUANT_ROW = 256  # llama.cpp quantizes a row in super-blocks of 256 weights


@pytest.fixture(scope="module")
def pair() -> dict:
    return {name: models.build_model(name) for name in models.SHAPES}


@pytest.fixture(scope="module")
def processor():
    return models.build_processor()


def n_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_student_has_at_most_half_of_the_teachers_parameters_and_both_are_small(pair: dict) -> None:
    student, teacher = n_parameters(pair["student"]), n_parameters(pair["teacher"])
    assert student <= teacher / 2
    assert 2 * teacher <= 24e6  # fp16
    assert 2 * student <= 8e6


@pytest.mark.parametrize("name", models.SHAPES)
def test_rows_of_the_language_model_fit_k_quants(pair: dict, name: str) -> None:
    matrices = [p for p in pair[name].model.text_model.parameters() if p.ndim == 2]
    assert len(matrices) == 1 + 7 * models.SHAPES[name].text_layers
    assert {matrix.shape[1] % K_QUANT_ROW for matrix in matrices} == {0}
    assert pair[name].model.connector.modality_projection.proj.weight.shape[1] % K_QUANT_ROW == 0


@pytest.mark.parametrize("name", models.SHAPES)
def test_the_pair_is_stock_and_tied(pair: dict, name: str) -> None:
    model = pair[name]
    assert type(model).__module__.startswith("transformers.models.idefics3.")
    assert model.config.model_type == "idefics3"
    assert model.lm_head.weight is model.model.text_model.embed_tokens.weight
    assert model.config.text_config.head_dim == 64
    assert model.generation_config.eos_token_id == model.config.text_config.eos_token_id


def test_a_model_is_decided_by_its_seed() -> None:
    one, same, other = (models.build_model("student", seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_splitting_is_on_and_the_longest_edge_is_above_the_tile(processor) -> None:
    image_processor = processor.image_processor
    assert image_processor.do_image_splitting
    assert image_processor.size["longest_edge"] > image_processor.max_image_size["longest_edge"] == models.TILE_PX


def test_one_picture_is_two_tiles_and_an_overview(processor) -> None:
    made = processor(text=["<image>"], images=[[Image.new("RGB", (WIDTH_PX, HEIGHT_PX))]], return_tensors="pt")
    assert made["pixel_values"].shape == (1, 3, 3, models.TILE_PX, models.TILE_PX)
    tokens = processor.tokenizer.convert_ids_to_tokens(made["input_ids"][0].tolist())
    assert tokens.count("<image>") == 3 * models.TOKENS_PER_TILE
    assert [token for token in tokens if token.startswith(("<row", "<global"))] == [
        "<row_1_col_1>",
        "<row_1_col_2>",
        "<global-img>",
    ]


def test_the_pre_tokenizer_is_one_that_llama_cpp_knows() -> None:
    frozen = json.loads(models.TOKENIZER_FILE.read_text(encoding="utf-8"))
    digits, bytes_ = frozen["pre_tokenizer"]["pretokenizers"]
    assert (digits["type"], digits["individual_digits"]) == ("Digits", True)
    assert (bytes_["type"], bytes_["add_prefix_space"], bytes_["use_regex"]) == ("ByteLevel", False, True)
    assert frozen["normalizer"] is None
    assert frozen["model"]["type"] == "BPE"


def test_special_tokens_are_the_first_ids_and_the_vocabulary_is_full(processor) -> None:
    tokenizer = processor.tokenizer
    assert len(tokenizer) == models.VOCABULARY
    assert tokenizer.convert_tokens_to_ids(list(models.SPECIAL_TOKENS)) == list(range(len(models.SPECIAL_TOKENS)))
    assert (tokenizer.eos_token, tokenizer.padding_side) == (models.END, "left")
    assert tokenizer.decode(list(range(len(models.SPECIAL_TOKENS))), skip_special_tokens=True) == ""


plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: "<" not in text)


@given(plain_text)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = models.load_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_words_of_questions_are_single_tokens_and_digits_stay_single(processor) -> None:
    tokenizer = processor.tokenizer
    for word in (*world.LETTERS, *(f" {color}" for color in world.COLORS), *(f" {shape}" for shape in world.SHAPES)):
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1, word
    assert len(tokenizer("1234567890", add_special_tokens=False)["input_ids"]) == 10
