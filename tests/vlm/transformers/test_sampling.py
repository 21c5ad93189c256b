"""What is chosen when a checkpoint asks for a penalty, and which settings are left to `generate`."""

from __future__ import annotations

import torch
from transformers import GenerationConfig, RepetitionPenaltyLogitsProcessor

from mpa_edge.types import Request
from mpa_edge.vlm.shared.sampling import NEUTRAL
from mpa_edge.vlm.transformers.sampling import Choice, Repetition, decodes_plainly


def test_the_penalty_is_the_librarys() -> None:
    prompts, scores = [[1, 2, 2, 7], [3, 3, 3, 3]], torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    ours, library = Repetition(1.3, prompts, 9, "cpu"), RepetitionPenaltyLogitsProcessor(1.3)
    assert torch.equal(ours(scores), library(torch.tensor(prompts), scores.clone()))
    ours.add(torch.tensor([0, 8]))
    more = torch.tensor([[*prompts[0], 0], [*prompts[1], 8]])
    assert torch.equal(ours(scores), library(more, scores.clone()))
    ours.keep([1])
    assert torch.equal(ours(scores[1:]), library(more[1:], scores[1:].clone()))


def test_rows_that_go_on_keep_their_own_seed() -> None:
    requests = [Request(None, "", temperature=1.0, seed=seed) for seed in range(4)]
    logits = torch.zeros(4, 500)
    whole, part = Choice(requests), Choice(requests)
    first = whole(logits)
    assert torch.equal(part(logits), first)
    part.keep([1, 3])
    assert torch.equal(part(logits[:2]), whole(logits)[[1, 3]])


def test_whatever_else_a_checkpoint_asks_for_is_left_to_generate() -> None:
    assert decodes_plainly(GenerationConfig(do_sample=True, temperature=0.01, top_p=0.001, top_k=1))
    for changed in ({"no_repeat_ngram_size": 3}, {"bad_words_ids": [[5]]}, {"suppress_tokens": [1]}, {"min_length": 4}):
        assert not decodes_plainly(GenerationConfig(**changed))


def test_every_setting_is_one_that_the_library_knows() -> None:
    assert set(NEUTRAL) <= set(GenerationConfig().to_dict())
