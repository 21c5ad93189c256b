from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mpa_edge.nursery import models, world
from mpa_edge.nursery.draw import CELL_PX, Glyph, paint
from mpa_edge.nursery.render import pictures
from mpa_edge.vlm.transformers import checkpoint
from tools.nursery_training import batches
from tools.nursery_training.batches import BAR_FACTS, CELL_CLASSES, CHARACTERS, IGNORE, Encoder, Mix

ASKS, ANSWERS = Mix(0.5, 5, 4, asks=True), Mix(0.5, 6, 4, asks=False)
LENGTH = 216


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(models.build_processor())


@pytest.fixture(scope="module")
def rows(encoder: Encoder) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in batches.batch(3, 5, 24, encoder, ASKS, LENGTH).items()}


def segments(rows: dict[str, np.ndarray], row: int) -> list[np.ndarray]:
    """Places of each segment of a row, the prefix left out."""
    numbers = rows["segment"][row]
    return [np.flatnonzero(numbers == i) for i in range(1, numbers.max() + 1)]


def test_a_batch_is_decided_by_seed_and_step(encoder: Encoder) -> None:
    def made(seed: int, step: int) -> dict[str, torch.Tensor]:
        return batches.batch(seed, step, 2, encoder, ASKS, LENGTH)

    one, same = made(0, 1), made(0, 1)
    assert all(torch.equal(one[key], same[key]) for key in one)
    for other in (made(0, 2), made(1, 1)):
        assert not torch.equal(one["frames"], other["frames"])
        assert not torch.equal(one["ids"], other["ids"])


def test_prefix_and_segment_are_the_bytes_that_inference_sends(encoder: Encoder) -> None:
    processor = encoder.processor
    image = next(pictures(1, 1, "target")).image
    for prompt, answer in (("What is the value of K?", "42"), ("Ask about a color.", "Question: Is it? Answer: red")):
        text = checkpoint.chat_prompt(processor, prompt) + checkpoint.chat_completion(processor, prompt, answer)
        sent = processor(text=[text], images=[[image]], add_special_tokens=False)["input_ids"][0]
        ids, labels = encoder.segment(prompt, answer)
        assert encoder.prefix + ids == list(sent)
        learned = [token for token in labels if token != IGNORE]
        assert encoder.tokenizer.decode(learned) == f" {answer}{models.END}"


def test_frames_are_the_pixels_of_the_processor(encoder: Encoder) -> None:
    for picture in pictures(4, 2, "mixed"):
        made = encoder.processor(text=["<image>"], images=[[picture.image]], return_tensors="pt")["pixel_values"][0]
        levels = (made.permute(0, 2, 3, 1).numpy() + 1) * 127.5
        assert np.abs(levels - batches.frames(picture.image)).max() < 0.01


def test_every_segment_starts_behind_the_image_and_teaches_one_true_answer(encoder: Encoder, rows: dict) -> None:
    rng = random.Random("nursery-3-5")
    for row in range(len(rows["ids"])):
        scene = world.draw_scene(rng)
        paint(scene, "target" if rng.random() < ASKS.target_share else "plain", rng)
        expected = batches.exchanges(rng, scene, ASKS)
        found = segments(rows, row)
        assert len(found) == len(expected)
        for places, (prompt, answer, _) in zip(found, expected, strict=True):
            assert list(rows["position"][row, places]) == [len(encoder.prefix) + i for i in range(len(places))]
            text = encoder.tokenizer.decode(rows["ids"][row, places])
            assert text == f"{prompt}{models.END}\nAssistant: {answer}{models.END}"
            labels = rows["labels"][row, places]
            assert encoder.tokenizer.decode(labels[labels != IGNORE]) == f" {answer}{models.END}"
            if prompt in (qa.question for qa in world.questions(scene)):
                assert answer == world.truth(scene, prompt)


def test_labels_are_the_next_token_of_their_own_segment(rows: dict) -> None:
    at = np.argwhere(rows["labels"] != IGNORE)
    assert len(at) > 100
    for row, place in at:
        assert rows["labels"][row, place] == rows["ids"][row, place + 1]
        assert rows["segment"][row, place] == rows["segment"][row, place + 1] > 0


def test_annotations_ask_for_their_focus_and_tell_the_truth() -> None:
    rng, fitting, parsed = random.Random(0), 0, 0
    for _ in range(300):
        scene = world.draw_scene(rng)
        ((prompt, text, _),) = batches.annotation(rng, scene)
        question, answer = text.removeprefix("Question: ").split(" Answer: ")
        assert answer == world.truth(scene, question)
        qa = next(qa for qa in world.questions(scene) if qa.question == question)
        offered = {qa.focus for qa in world.questions(scene)}
        focus = prompt.removeprefix("Ask about a ").removesuffix(".")
        assert qa.focus == focus or focus not in offered
        fitting, parsed = fitting + (qa.focus == focus), parsed + 1
    assert 0 < fitting < parsed == 300


def test_only_a_model_that_asks_is_taught_to_ask(encoder: Encoder) -> None:
    scene = world.draw_chart(random.Random(1))
    assert batches.exchanges(random.Random(2), scene, ASKS)[0][0].startswith("Ask about a ")
    silent = batches.exchanges(random.Random(2), scene, ANSWERS)
    assert not any(prompt.startswith("Ask") for prompt, _, _ in silent)
    assert len({prompt for prompt, _, _ in silent}) == len(silent) <= ANSWERS.questions + ANSWERS.lookups


def test_key_words_are_where_questions_name_a_bar_and_find_its_facts(encoder: Encoder, rows: dict) -> None:
    found = np.argwhere(rows["found"][:, 0] != IGNORE)
    assert len(found) > 30
    for row, place in found:
        label, color, _, _ = rows["found"][row, :, place]
        word = encoder.tokenizer.decode([rows["ids"][row, place]])
        assert word in (f" {world.COLORS[color]}", f" {world.LETTERS[label]}", world.LETTERS[label])


def test_facts_of_a_bar_and_of_its_cells() -> None:
    scene = world.Chart(("K", "B"), ("red", "blue"), (42, 7), 1)
    assert batches.bar_facts(scene, 0) == [10, 0, 4, 2]
    assert batches.bar_facts(scene, 1) == [1, 2, 10, 7]  # 10: no tens digit
    cells = batches.cell_labels(scene)
    left, right = (half.reshape(len(CELL_CLASSES), 4, 4) for half in np.split(cells, 2, axis=1))
    none = [n - 1 for n in CELL_CLASSES.values()]
    assert (left[:, :, :2] == np.array(none)[:, None, None]).all()  # slot 0 is empty
    assert (left[: len(BAR_FACTS), :, 2:] == np.array([10, 0, 4, 2])[:, None, None]).all()
    assert (right[: len(BAR_FACTS), :, :2] == np.array([1, 2, 10, 7])[:, None, None]).all()
    assert (right[:, :, 2:] == np.array(none)[:, None, None]).all()


def test_cells_of_a_field_and_of_a_sign() -> None:
    cells = batches.cell_labels(world.Field(((6, "triangle", "green"),)))  # third column, second row: right tile, below
    right = np.split(cells, 2, axis=1)[1].reshape(len(CELL_CLASSES), 4, 4)
    assert (right[1, 2:, :2] == world.COLORS.index("green")).all()
    assert (right[4, 2:, :2] == world.SHAPES.index("triangle")).all()
    assert (cells[4] != 3).sum() == (CELL_PX // batches.TOKEN_PX) ** 2
    sign = batches.cell_labels(world.Sign("STOP", 4, "red", True))
    assert all((sign[i] == n - 1).all() for i, n in enumerate(CELL_CLASSES.values()))


def test_glyphs_go_to_the_patch_of_their_tile() -> None:
    grid = batches.glyph_labels([Glyph("A", 4, 4), Glyph("7", 127, 63), Glyph("B", 64, 8), Glyph("C", -1, 5)])
    left, right = (half.reshape(8, 8) for half in np.split(grid, 2))
    assert left[0, 0] == CHARACTERS.index("A")
    assert right[7, 7] == CHARACTERS.index("7")
    assert right[1, 0] == CHARACTERS.index("B")
    assert (grid != len(CHARACTERS)).sum() == 3


def test_a_picture_with_too_many_questions_keeps_those_that_fit_whole(encoder: Encoder) -> None:
    row = batches.example(random.Random(1), encoder, Mix(0.5, 40, 0, asks=True), 120)
    last = np.flatnonzero(row["segment"] > 0)[-1]
    assert row["ids"][last] == encoder.tokenizer.eos_token_id
    assert row["segment"].max() >= 1
    assert len(row["ids"]) == 120


def test_no_rendered_picture_was_trained_on(encoder: Encoder) -> None:
    frames = [batches.batch(0, step, 36, encoder, ASKS, LENGTH)["frames"].numpy() for step in range(2)]
    seen = {np.concatenate([one[0], one[1]], axis=1).tobytes() for one in np.concatenate(frames)}
    assert len(seen) == 72
    assert not seen & {picture.image.tobytes() for style in ("plain", "target") for picture in pictures(60, 0, style)}


def test_a_word_of_two_tokens_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="not one token"):
        encoder.word_ids(["photograph"])
