"""How sure a model says that it is, against its own logits."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mpa_edge.nursery.render import pictures
from mpa_edge.types import Request
from mpa_edge.vlm.transformers import checkpoint
from mpa_edge.vlm.transformers.model import TransformersVLM

QUESTIONS = ("How many bars are there?", "What is the value of the purple bar?", "Ask about a text.")


@pytest.fixture(scope="module")
def vlm(random_checkpoint: Path) -> TransformersVLM:
    return TransformersVLM(str(random_checkpoint), name="student", device="cpu", threads=1)


def asked(**options: float) -> list[Request]:
    drawn = [picture.image for picture in pictures(2, 99, "target")]
    return [
        Request(drawn[i % 2], question, max_new_tokens=6, seed=i, confidence=True, **options)
        for i, question in enumerate(QUESTIONS)
    ]


@torch.inference_mode()
def by_hand(vlm: TransformersVLM, request: Request) -> float:
    """Mean log-probability of the greedy answer, from one forward pass over prompt and answer."""
    text = checkpoint.chat_prompt(vlm.processor, request.prompt)
    inputs = vlm.processor(text=[text], images=[[request.image]], add_special_tokens=False, return_tensors="pt")
    whole = vlm.model.generate(**inputs, max_new_tokens=request.max_new_tokens, do_sample=False)
    first = inputs["input_ids"].shape[1]
    inputs["input_ids"], inputs["attention_mask"] = whole, torch.ones_like(whole)
    logprobs = vlm.model(**inputs).logits[0, first - 1 : -1].log_softmax(-1)
    return float(logprobs.gather(1, whole[0, first:, None]).mean())


def test_it_is_the_mean_of_the_tokens_own_log_probabilities(vlm) -> None:
    replies = vlm.answer(asked())
    for request, reply in zip(asked(), replies, strict=True):
        assert reply.logprob == pytest.approx(by_hand(vlm, request), abs=1e-4)
        assert 0 < math.exp(reply.logprob) < 1


def test_asking_for_it_changes_no_answer(vlm) -> None:
    for options in ({}, {"temperature": 1.0, "top_p": 0.9}):
        plain = [Request(r.image, r.prompt, r.max_new_tokens, seed=r.seed, **options) for r in asked()]
        replies, watched = vlm.answer(plain), vlm.answer(asked(**options))
        assert [reply.text for reply in replies] == [reply.text for reply in watched]
        assert {reply.logprob for reply in replies} == {None}
        assert all(reply.logprob < 0 for reply in watched)


def test_only_who_asks_is_told(vlm) -> None:
    first, *others = asked()
    mixed = [first, *(Request(other.image, other.prompt, other.max_new_tokens) for other in others)]
    assert [reply.logprob is None for reply in vlm.answer(mixed)] == [False, True, True]


def test_it_does_not_depend_on_the_batch(vlm) -> None:
    together = [reply.logprob for reply in vlm.answer(asked())]
    assert [vlm.answer([one])[0].logprob for one in asked()] == pytest.approx(together, abs=1e-5)
