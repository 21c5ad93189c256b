"""Tokens are drawn as their probabilities say, from the request's own seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

from mpa_edge.types import Request
from mpa_edge.vlm.shared.sampling import Sampler, nucleus

IMAGE = Image.new("RGB", (1, 1))
N = 20_000


def request(temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> Request:
    return Request(IMAGE, "?", 16, temperature, top_p, seed)


def shares(logits: np.ndarray, asked: Request) -> np.ndarray:
    sampler = Sampler(asked)
    return np.bincount([sampler(logits) for _ in range(N)], minlength=len(logits)) / N


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert [Sampler(request())(np.array([1.0, 3.0, 3.0], np.float32)) for _ in range(3)] == [1, 1, 1]


@given(st.floats(0.5, 2.0), st.integers(0, 99))
def test_the_penalty_is_that_of_transformers(penalty: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sampler, ids = Sampler(request(), penalty, prompt := rng.integers(0, 50, 8).tolist()), list(prompt)
    for _ in range(4):
        logits = rng.normal(size=50).astype(np.float32)
        expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), torch.tensor(logits)[None])[0].numpy()
        np.testing.assert_allclose(sampler.scores(logits), expected, rtol=1e-6)
        ids.append(sampler(logits))
        assert ids[-1] == expected.argmax()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_their_probability(temperature: float) -> None:
    logits = np.array([2.0, 1.0, 0.0, -1.0], np.float32)
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    # five standard deviations of a share
    np.testing.assert_allclose(shares(logits, request(temperature)), expected, atol=5 * (0.25 / N) ** 0.5)


def test_only_the_nucleus_is_drawn_from() -> None:
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4]))
    found = shares(logits, request(1.0, 0.65))
    np.testing.assert_allclose(found, [0, 0, 3 / 7, 4 / 7], atol=5 * (0.25 / N) ** 0.5)


def test_a_seed_says_it_all() -> None:
    logits = np.random.default_rng(0).normal(size=100)

    def drawn(seed: int) -> list[int]:
        sampler = Sampler(request(1.0, 0.9, seed))
        return [sampler(logits) for _ in range(20)]

    assert drawn(1) == drawn(1) != drawn(2)


@given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40, unique=True), st.floats(0.05, 0.99))
def test_the_nucleus_is_that_of_transformers(values: list[float], top_p: float) -> None:
    logits = np.array(values)
    probabilities = np.sort(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())
    if np.abs(np.cumsum(probabilities) - (1 - top_p)).min() < 1e-5:
        return  # a tie of rounding: either is right
    theirs = TopPLogitsWarper(top_p)(torch.zeros(1, 1), torch.tensor(values)[None].double())[0].numpy()
    np.testing.assert_array_equal(np.isfinite(nucleus(logits, top_p)), np.isfinite(theirs))


def test_a_nucleus_of_nothing_is_the_likeliest() -> None:
    assert Sampler(request(5.0, 0.0))(np.array([0.0, 1.0, 0.9])) == 1
