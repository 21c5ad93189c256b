"""Behind a prefix every family says what `generate` says on the whole prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from PIL import Image

from mpa_edge.types import Request
from mpa_edge.vlm.transformers import checkpoint, prefix_cache
from mpa_edge.vlm.transformers.batching import BatchSize
from mpa_edge.vlm.transformers.model import TransformersVLM
from tests.families import zoo

QUESTIONS = (
    "How many?",
    "  a\n\nb",
    "\nWhat",
    "What is the value of the largest bar in this chart? Answer the question with a single word or phrase.",
)
SIZES = ((128, 64), (64, 128), (200, 200), (300, 100))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    noise = zoo.noise(700, 700)
    return [noise.resize(size) for size in SIZES]


@pytest.fixture(scope="module", params=prefix_cache.LOOKS_BACK)
def vlm(request: pytest.FixtureRequest) -> Iterator[TransformersVLM]:
    made = TransformersVLM(str(zoo.checkpoint(request.param)), name="it", device="cpu", threads=1)
    yield made
    made.close()


def requests_about(drawn: list[Image.Image]) -> list[Request]:
    """All questions about all images with two limits, half of them sampled."""
    return [
        Request(image, question, 5 + i % 2, temperature=float(i % 2), top_p=0.9, seed=i)
        for i, image in enumerate(drawn)
        for question in QUESTIONS
    ]


def whole(vlm: TransformersVLM, requests: list[Request]) -> list:
    vlm.shares = False
    try:
        return vlm.answer(requests)
    finally:
        vlm.shares = True


def test_the_replies_are_those_of_generate(vlm: TransformersVLM, drawn) -> None:
    requests = requests_about(drawn)
    expected = whole(vlm, requests)
    assert vlm.shares
    assert vlm.answer(requests) == expected
    assert vlm.store.held_bytes > 0
    assert vlm.answer(requests) == expected
    assert len({reply.text for reply in expected}) > 10


def test_the_prompt_in_two_parts_has_the_tokens_of_the_whole(vlm: TransformersVLM, drawn) -> None:
    for image, question in zip(drawn, QUESTIONS, strict=True):
        text = checkpoint.chat_prompt(vlm.processor, question)
        made = vlm.processor(text=[text], images=[[image]], add_special_tokens=False, return_tensors="pt")
        head, tail = prefix_cache.split(vlm.processor, text)
        before = prefix_cache.prepare(vlm.processor, head, image)["input_ids"][0].tolist()
        assert [*before, *tail] == made["input_ids"][0].tolist()


@pytest.mark.parametrize("which", ["qwen3_5", "lfm2_vl", "gemma4"])
def test_a_recurrent_state_is_never_shared(drawn, which: str) -> None:
    """Its state behind the image is that of the padding, too: even where sharing is asked for, `generate` answers."""
    assert which in set(zoo.MODEL_TYPES) - set(prefix_cache.LOOKS_BACK)
    vlm = TransformersVLM(str(zoo.checkpoint(which)), name="it", device="cpu", threads=1)
    assert not vlm.shares
    requests = requests_about(drawn)[:8]
    expected = [vlm.answer([request])[0] for request in requests]
    vlm.shares = True
    assert vlm.answer(requests) == expected
    assert not vlm.shares
    assert vlm.store.held_bytes == 0
    assert len({reply.text for reply in expected}) > 4


@pytest.fixture(scope="module")
def one() -> TransformersVLM:
    return TransformersVLM(str(zoo.checkpoint("qwen2_vl")), name="it", device="cpu", threads=1)


def test_without_room_for_prefixes_and_with_single_requests_it_is_the_same(one: TransformersVLM, drawn) -> None:
    requests = requests_about(drawn)
    expected = one.answer(requests)
    store, one.store = one.store, prefix_cache.PrefixStore(0)
    one.batch = BatchSize(1)
    assert one.answer(requests) == expected
    one.store, one.batch = store, BatchSize(64)


def test_a_penalty_of_the_checkpoint_counts_as_in_generate(one: TransformersVLM, drawn) -> None:
    requests = [replace(request, max_new_tokens=12) for request in requests_about(drawn)]
    free = one.answer(requests)
    one.model.generation_config.repetition_penalty = 1.8
    assert one.answer(requests) == whole(one, requests)
    assert [reply.text for reply in one.answer(requests)] != [reply.text for reply in free]
    one.model.generation_config.repetition_penalty = 1.0


def test_a_model_without_prefixes_answers_whole_prompts(one: TransformersVLM, drawn, monkeypatch) -> None:
    def no_prefix(*_: object) -> None:
        raise prefix_cache.NoPrefixError

    requests = requests_about(drawn)
    expected = one.answer(requests)
    one.store.clear()
    monkeypatch.setattr(prefix_cache, "see", no_prefix)
    assert one.answer(requests) == expected
    assert not one.shares
    one.shares = True
