"""Training batches of the nursery: one picture, its image prefix once, and several question segments that share it.

Every batch is a pure function of (seed, step), so that a resumed training sees what an undisturbed one would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from mpa_edge.nursery import models, world
from mpa_edge.nursery.draw import CELL_PX, HEIGHT_PX, WIDTH_PX, Glyph, paint
from mpa_edge.nursery.world import QA, Chart, Field, Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHARACTERS = world.LETTERS + "0123456789"
PATCHES_X, PATCHES_Y = WIDTH_PX // models.PATCH_PX, HEIGHT_PX // models.PATCH_PX
TOKEN_PX = models.PATCH_PX * models.SCALE
TILES = WIDTH_PX // models.TILE_PX
IGNORE = -100
# What each image token is asked in training besides the questions: the bar (or shape) that its cell belongs to.
CELL_CLASSES = {"label": 27, "color": 7, "tens": 11, "ones": 11, "shape": 4}
# Facts that questions name in one word: the word as it stands in a question (a letter follows a blank of its own).
NAMED_FACTS = {"label": tuple(world.LETTERS), "color": tuple(f" {color}" for color in world.COLORS)}
BAR_FACTS = ("label", "color", "tens", "ones")
LOOKUPS = frozenset({"value", "value_by_color", "bar_color", "label_by_color"})


@dataclass(frozen=True)
class Mix:
    """What a model is trained on."""

    target_share: float
    """Share of pictures in the target style, 0 to 1."""
    questions: int
    """Questions a picture, spread over the kinds."""
    lookups: int
    """Further look-ups a chart."""
    asks: bool
    """Whether it also learns to write questions."""


class Encoder:
    """Token ids of prompts and answers around one image; the prefix is the processor's own."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer

    @cached_property
    def prefix(self) -> list[int]:
        """Ids up to the end of the image, the same for every 128 x 64 picture."""
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
        text = self.processor.apply_chat_template(message, add_generation_prompt=True)
        ids = self.processor(text=[text], images=[[Image.new("RGB", (WIDTH_PX, HEIGHT_PX))]])["input_ids"][0]
        last_image = max(i for i, token in enumerate(ids) if token == self.image_token)
        return list(ids[: last_image + 2])

    @cached_property
    def image_token(self) -> int:
        """The id of `<image>`."""
        return int(self.tokenizer.convert_tokens_to_ids("<image>"))

    def word_ids(self, words: Sequence[str]) -> list[int]:
        """The token of each word; every word must be one token."""
        ids = [self._ids(word) for word in words]
        if any(len(one) != 1 for one in ids):
            raise ValueError("a word of NAMED_FACTS is not one token of the tokenizer")
        return [one[0] for one in ids]

    def key_id(self, key: str) -> int:
        """The token of a label or of a colour as it stands in a question."""
        return self.word_ids([key if key in world.LETTERS else f" {key}"])[0]

    def segment(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """(ids, labels) of one exchange; labels cover the answer and the end token only."""
        question = self._ids(f"{prompt}{models.END}\nAssistant:")
        reply = self._ids(f" {answer}{models.END}")
        return question + reply, [IGNORE] * len(question) + reply

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def exchanges(rng: random.Random, scene: Scene, mix: Mix) -> list[tuple[str, str, QA | None]]:
    """(prompt, answer, look-up or None) for one picture: questions of all kinds, and an annotation where `mix.asks`."""
    asked = world.pick(rng, scene, mix.questions)
    asked += [qa for qa in world.pick(rng, scene, mix.lookups, LOOKUPS) if qa not in asked]
    pairs: list[tuple[str, str, QA | None]] = [(qa.question, qa.answer, qa if qa.key else None) for qa in asked]
    return [*annotation(rng, scene), *pairs] if mix.asks else pairs


def annotation(rng: random.Random, scene: Scene) -> list[tuple[str, str, QA | None]]:
    """What the teacher should write when it is asked for a question with a focus; any question where none fits."""
    focus = rng.choice(world.FOCUSES)
    fitting = [qa for qa in world.questions(scene) if qa.focus == focus] or world.questions(scene)
    qa: QA = world.pick(rng, scene, 1, frozenset({rng.choice(fitting).kind}))[0]
    text = f"Question: {qa.question} Answer: {qa.answer}"
    return [(world.PLAIN_SENTENCE.format(focus=focus), text, qa if qa.key else None)]


def frames(image: Image.Image) -> NDArray[np.uint8]:
    """The processor's frames of a 128 x 64 picture: left tile, right tile, overview. (3, 64, 64, 3) uint8."""
    pixels = np.asarray(image, np.uint8)
    overview = np.asarray(image.resize((models.TILE_PX, models.TILE_PX), Image.Resampling.LANCZOS), np.uint8)
    return np.stack([pixels[:, : models.TILE_PX], pixels[:, models.TILE_PX :], overview])


def glyph_labels(glyphs: list[Glyph]) -> NDArray[np.int64]:
    """Which character each patch of the two tiles holds; the last class is none. (2 * 64,)"""
    grid = np.full((PATCHES_Y, PATCHES_X), len(CHARACTERS), np.int64)
    for glyph in glyphs:
        x, y = int(glyph.x_px // models.PATCH_PX), int(glyph.y_px // models.PATCH_PX)
        if 0 <= x < PATCHES_X and 0 <= y < PATCHES_Y:
            grid[y, x] = CHARACTERS.index(glyph.character)
    return np.concatenate([half.reshape(-1) for half in np.split(grid, TILES, axis=1)])


def bar_facts(scene: Chart, i: int) -> list[int]:
    """Classes of the facts BAR_FACTS of a bar."""
    value = scene.values[i]
    tens = value // 10 if value > 9 else CELL_CLASSES["tens"] - 1
    return [world.LETTERS.index(scene.labels[i]), world.COLORS.index(scene.colors[i]), tens, value % 10]


def cell_labels(scene: Scene) -> NDArray[np.int64]:
    """What lies in the 32 px cell of each image token of the two tiles. (len(CELL_CLASSES), 2 * 16)"""
    rows, columns = HEIGHT_PX // TOKEN_PX, WIDTH_PX // TOKEN_PX
    grid = np.stack([np.full((rows, columns), n - 1, np.int64) for n in CELL_CLASSES.values()])
    per_cell = CELL_PX // TOKEN_PX
    if isinstance(scene, Chart):
        for i in range(len(scene.labels)):
            x = (scene.first_slot + i) * per_cell
            grid[: len(BAR_FACTS), :, x : x + per_cell] = np.array(bar_facts(scene, i))[:, None, None]
    elif isinstance(scene, Field):
        for cell, shape, color in scene.items:
            x, y = cell % 4 * per_cell, cell // 4 * per_cell
            grid[1, y : y + per_cell, x : x + per_cell] = world.COLORS.index(color)
            grid[4, y : y + per_cell, x : x + per_cell] = world.SHAPES.index(shape)
    return np.concatenate([half.reshape(len(CELL_CLASSES), -1) for half in np.split(grid, TILES, axis=2)], axis=1)


def example(rng: random.Random, encoder: Encoder, mix: Mix, length: int) -> dict[str, NDArray[Any]]:
    """One packed picture: ids, next-token labels, segment numbers and positions, each (length,), and its pixels."""
    scene = world.draw_scene(rng)
    image, glyphs = paint(scene, "target" if rng.random() < mix.target_share else "plain", rng)
    prefix = encoder.prefix
    ids = np.full(length, encoder.tokenizer.pad_token_id, np.int64)
    labels, segment, position = np.full(length, IGNORE), np.full(length, -1), np.zeros(length, np.int64)
    found = np.full((len(BAR_FACTS), length), IGNORE)
    ids[: len(prefix)], segment[: len(prefix)], position[: len(prefix)] = prefix, 0, np.arange(len(prefix))
    end = len(prefix)
    for number, (prompt, answer, lookup) in enumerate(exchanges(rng, scene, mix), start=1):
        tokens, targets = encoder.segment(prompt, answer)
        stop = end + len(tokens)
        if stop > length:
            break
        if lookup is not None and isinstance(scene, Chart):
            found[:, end + tokens.index(encoder.key_id(lookup.key))] = bar_facts(scene, lookup.bar)
        ids[end:stop], segment[end:stop] = tokens, number
        position[end:stop] = len(prefix) + np.arange(len(tokens))
        labels[end : stop - 1] = targets[1:]
        end = stop
    return {
        "frames": frames(image),
        "ids": ids,
        "labels": labels,
        "segment": segment,
        "position": position,
        "glyphs": glyph_labels(glyphs),
        "cells": cell_labels(scene),
        "found": found,
    }


def batch(seed: int, step: int, size: int, encoder: Encoder, mix: Mix, length: int) -> dict[str, torch.Tensor]:
    """`size` examples as tensors; the same for the same (seed, step)."""
    rng = random.Random(f"nursery-{seed}-{step}")
    rows = [example(rng, encoder, mix, length) for _ in range(size)]
    return {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
