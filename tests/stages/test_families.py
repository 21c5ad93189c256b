"""Every family through the stages that touch its weights: it answers, learns, and is merged."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpa_edge.runs.manifest import StageClock
from mpa_edge.stages.level import training
from mpa_edge.stages.level.selection import Selection
from mpa_edge.stages.merge import probe_inputs
from mpa_edge.types import ParityRecord, Request
from mpa_edge.vlm import load
from mpa_edge.vlm.transformers.merging import MAX_LOGIT_DIFFERENCE, merge
from tests.families import zoo

QUESTIONS = ("What is this?", "How many bars are there?")


@pytest.fixture
def images_folder(tmp_path: Path) -> Path:
    """Six images of noise in two shapes, in the place of the one-coloured ones."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 255, (6, 4 + 8 * (i % 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80 + 80 * (i % 2), 100)).save(folder / f"{i}.png")
    return folder


def records(n: int) -> tuple[ParityRecord, ...]:
    return tuple(
        ParityRecord(
            id=str(i),
            image_id=str(i),
            image=f"{i % 6}.png",
            question=QUESTIONS[i % 2],
            answer=("seven", "red")[i % 2],
            teacher_answer="",
            student_answer=None,
            verdict="gap",
        )
        for i in range(n)
    )


def requests(images_folder: Path) -> list[Request]:
    images = [Image.open(images_folder / f"{i}.png").convert("RGB") for i in range(2)]
    return [Request(image, question, 6) for image in images for question in QUESTIONS]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [*zoo.MODEL_TYPES, "internvl2_4b"])
def test_a_student_of_every_model_type_is_taught(model_type, make_run, images_folder, tmp_path) -> None:
    base = str(zoo.checkpoint(model_type))
    run = make_run(
        student=base,
        threads=1,
        level__batch_size=4,
        level__max_steps=16,
        level__eval_steps=8,
        level__rank=8,
        level__targets=["language", "connector", "vision"],
        level__learning_rate=0.005,
        level__warmup_steps=0,
        level__patience=0,
    )
    outcome = training.train(
        run, Selection(records(12), records(4), 0), tmp_path / "steps", tmp_path / "adapter", StageClock(tmp_path)
    )
    losses = [entry["loss"] for entry in outcome.losses if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    merged = tmp_path / "merged"
    inputs_of = partial(probe_inputs, run)
    assert merge(base, tmp_path / "adapter", merged, inputs_of) < MAX_LOGIT_DIFFERENCE
    assert replies(str(merged), images_folder) != replies(base, images_folder)


def replies(path: str, images_folder: Path) -> list[str]:
    vlm = load(path, name="x", device="cpu", threads=1)
    return [reply.text for reply in vlm.answer(requests(images_folder))]


@pytest.mark.parametrize("model_type", zoo.MODEL_TYPES)
def test_a_batch_of_two_shapes_is_answered_as_one_by_one(model_type, images_folder) -> None:
    vlm = load(str(zoo.checkpoint(model_type)), name="x", device="cpu", threads=1)
    asked = requests(images_folder)
    batch = [reply.text for reply in vlm.answer(asked)]
    assert batch == [vlm.answer([one])[0].text for one in asked]
    assert len(set(batch)) > 2
