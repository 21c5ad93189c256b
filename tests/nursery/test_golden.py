"""The generator is frozen: the shipped weights know this world and no other. See golden.py before changing anything."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mpa_edge.nursery.draw import HEIGHT_PX, WIDTH_PX
from tests.nursery import golden

STORED = json.loads(golden.HASHES.read_text())


def unlike(made: Image.Image, stored: Image.Image) -> list[float]:
    """Mean absolute difference of each picture of two sheets, in grey levels (0 to 255)."""
    difference = np.abs(np.asarray(made, int) - np.asarray(stored.convert("RGB"), int))
    rows = difference.reshape(golden.ROWS, HEIGHT_PX, golden.COLUMNS, WIDTH_PX, 3)
    return [float(mean) for mean in rows.mean((1, 3, 4)).flatten()]


@pytest.fixture(scope="module")
def made() -> dict:
    return golden.hashes()


@pytest.mark.parametrize("name", STORED)
def test_scenes_words_questions_and_batches_are_the_ones_of_the_training(name: str, made: dict) -> None:
    assert made[name] == STORED[name]


def test_nothing_is_made_that_is_not_stored(made: dict) -> None:
    assert set(made) == set(STORED)


def test_pictures_are_those_of_the_training_up_to_rounding_of_image_libraries() -> None:
    with Image.open(golden.SHEET) as stored:
        assert max(unlike(golden.sheet(), stored)) < 2


def test_the_comparison_sees_a_word_that_moved_by_one_pixel_and_a_changed_colour() -> None:
    sheet = golden.sheet()
    moved = sheet.copy()
    moved.paste(sheet.crop((0, 0, 127, 64)), (1, 0))
    assert max(unlike(moved, sheet)) > 2
    pixels = np.array(sheet)
    pixels[(pixels == (214, 39, 40)).all(-1)] = (255, 105, 97)
    assert max(unlike(Image.fromarray(pixels), sheet)) > 2
