"""Decoding behind prefixes: memory is taken once, rows that have ended drop out, and nobody's answer changes."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from mpa_edge.nursery.render import pictures
from mpa_edge.tasks import get_task
from mpa_edge.types import Request
from mpa_edge.vlm import load
from mpa_edge.vlm.transformers import decoding
from mpa_edge.vlm.transformers.decoding import Batch, FilledLayer


def test_a_layer_with_room_keeps_what_a_growing_one_keeps() -> None:
    first, steps = torch.randn(2, 3, 4, 8), [torch.randn(2, 3, n, 8) for n in (3, 1, 1)]
    growing, memory = DynamicLayer(), torch.zeros(2, 2, 3, 9, 8)
    growing.update(first, -first)
    memory[0, :, :, :4], memory[1, :, :, :4] = first, -first
    filled = FilledLayer(memory[0], memory[1], 4)
    for step in steps:
        expected, got = growing.update(step, 2 * step), filled.update(step, 2 * step)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
        assert got[0].data_ptr() == memory[0].data_ptr()
        assert filled.get_seq_length() == growing.get_seq_length()
        assert filled.get_mask_sizes(2) == growing.get_mask_sizes(2)


def test_rows_that_have_ended_are_not_computed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = load("nursery:teacher", name="teacher", device="cpu", threads=1)
    drawn, prompts = [picture.image for picture in pictures(4, 99, "target")], get_task("minicharts").annotation_prompts
    requests = [Request(image, prompt, 48) for image in drawn for prompt in prompts]
    sizes, forward = [], Batch._forward
    monkeypatch.setattr(Batch, "_forward", lambda self, ids, *rest: sizes.append(len(ids)) or forward(self, ids, *rest))
    replies = vlm.answer(requests)
    shrunk = list(sizes)
    monkeypatch.setattr(decoding, "SHRINK_AT", 0.0)
    sizes.clear()
    assert vlm.answer(requests) == replies
    longest = max(reply.n_tokens for reply in replies)
    assert sizes == [len(requests)] * longest
    assert len(shrunk) == longest
    assert shrunk[0] == len(requests)
    assert shrunk[-1] <= 0.75 * len(requests)
    assert len({reply.n_tokens for reply in replies}) > 2
    vlm.close()
