"""What the shipped pair can do, on pictures that neither has seen: a strong teacher, a student with a gap of style."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from mpa_edge.metrics import get_metric
from mpa_edge.nursery import models, world
from mpa_edge.nursery.render import FileStyle, Picture, pictures, questions_of
from mpa_edge.tasks import Task, answer_prompt, get_task
from mpa_edge.tasks.parse import ParsedAnnotation, parse_annotation
from mpa_edge.types import VLM, Request
from mpa_edge.vlm import WEIGHTS, load

pytestmark = pytest.mark.slow
LARGEST_BYTES = {"teacher": 24e6, "student": 8e6}
FRESH_SEED = 424242
N = 300


@pytest.fixture(scope="module")
def teacher() -> VLM:
    return load("nursery:teacher", name="teacher", device="cpu", threads=1)


@pytest.fixture(scope="module")
def student() -> VLM:
    return load("nursery:student", name="student", device="cpu", threads=1)


@pytest.fixture(scope="module")
def task() -> Task:
    return get_task("minicharts")


def accuracy(vlm: VLM, style: FileStyle, task: Task) -> float:
    """Strict accuracy on one question about each of N fresh pictures."""
    drawn = list(pictures(N, FRESH_SEED, style))
    asked = [questions_of(picture, FRESH_SEED, 1)[0] for picture in drawn]
    requests = [
        Request(picture.image, answer_prompt(task, sample.question), max_new_tokens=16)
        for picture, sample in zip(drawn, asked, strict=True)
    ]
    replies = vlm.answer(requests)
    scored = [
        (sample.kind, get_metric(task.metric).score(reply.text, sample.answers))
        for sample, reply in zip(asked, replies, strict=True)
    ]
    for kind in sorted({kind for kind, _ in scored}):  # shown where a test fails
        own = [score for one, score in scored if one == kind]
        print(f"{vlm.name} {style} {kind:16} {sum(own):4.0f} of {len(own)}")
    return sum(score for _, score in scored) / len(scored)


@pytest.mark.parametrize("style", ["mixed", "target"])
def test_the_teacher_answers_nine_in_ten_questions(teacher: VLM, task: Task, style: FileStyle) -> None:
    assert accuracy(teacher, style, task) >= 0.9


def test_the_student_is_sound_in_the_plain_style(student: VLM, task: Task) -> None:
    assert accuracy(student, "plain", task) >= 0.85


def test_the_student_is_weak_but_not_broken_in_the_target_style(student: VLM, task: Task) -> None:
    assert 0.35 <= accuracy(student, "target", task) <= 0.65


def annotations(vlm: VLM, task: Task, drawn: list[Picture]) -> list[tuple[Picture, ParsedAnnotation | None]]:
    """What the model writes, greedily, for every focus about every picture; None where it does not parse."""
    asked = [(picture, prompt) for picture in drawn for prompt in task.annotation_prompts]
    replies = vlm.answer([Request(picture.image, prompt, max_new_tokens=64) for picture, prompt in asked])
    parsed = [parse_annotation(reply.text, task.max_answer_words) for reply in replies]
    return [
        (picture, one if isinstance(one, ParsedAnnotation) else None)
        for (picture, _), one in zip(asked, parsed, strict=True)
    ]


def test_the_teacher_writes_questions_that_parse_with_answers_that_are_true(teacher: VLM, task: Task) -> None:
    assert len(task.annotation_prompts) == len(world.FOCUSES)
    written = annotations(teacher, task, list(pictures(100, FRESH_SEED, "target")))
    parsed = [(picture, one) for picture, one in written if one]
    assert len(parsed) >= 0.95 * len(written)
    true = [one for picture, one in parsed if world.truth(picture.scene, one.question) == one.answer]
    assert len(true) >= 0.85 * len(parsed)


@pytest.mark.parametrize("name", LARGEST_BYTES)
def test_a_folder_is_a_stock_checkpoint_in_half_precision_and_small(name: str) -> None:
    folder = WEIGHTS / name
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "chat_template.jinja", "generation_config.json"} <= files
    assert not [file for file in files if Path(file).suffix in (".bin", ".pt", ".pth", ".pkl", ".py")]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LARGEST_BYTES[name]
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"F16"}  # noqa: SIM118


@pytest.mark.parametrize("name", LARGEST_BYTES)
def test_it_loads_with_the_auto_classes_alone_and_has_the_frozen_shape_and_words(name: str) -> None:
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS / name)
    built = models.build_model(name).state_dict()
    assert {key: value.shape for key, value in model.state_dict().items()} == {k: v.shape for k, v in built.items()}
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    processor, frozen = AutoProcessor.from_pretrained(WEIGHTS / name), models.build_processor()
    assert processor.tokenizer.get_vocab() == frozen.tokenizer.get_vocab()
    assert processor.chat_template == models.CHAT_TEMPLATE
    picture = next(pictures(1, 1, "target")).image
    text = [f"<image>What is the value of K?{models.END}"]
    one, two = (p(text=text, images=[[picture]], return_tensors="pt") for p in (processor, frozen))
    assert torch.equal(one["input_ids"], two["input_ids"])
    assert (one["pixel_values"] - two["pixel_values"]).abs().max() <= 1.01 / 127.5  # one grey level of rounding
