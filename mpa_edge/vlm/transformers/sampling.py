"""The next token of each row of a batch from its logits: greedy, or sampled from the row's own seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor
from transformers.generation.logits_process import TopPLogitsWarper

from mpa_edge.types import Request
from mpa_edge.vlm.shared.sampling import changes_decoding

if TYPE_CHECKING:
    from torch import Tensor


class SeededSampling(LogitsProcessor):
    """Sampling as an argmax over logits with Gumbel noise, each row from its own seed, independent of the batch.

    Rows with temperature 0 stay greedy. Source of the trick: Maddison et al. 2014, "A* Sampling", section 2.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = list(requests)
        self.generators = [torch.Generator().manual_seed(request.seed) for request in requests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, vocabulary) logits -> the same, changed where a row samples."""
        scores = scores.clone()
        for row, (request, generator) in enumerate(zip(self.requests, self.generators, strict=True)):
            if request.temperature > 0:
                warped = scores[row : row + 1] / request.temperature
                if request.top_p < 1:
                    warped = TopPLogitsWarper(request.top_p)(input_ids[row : row + 1], warped)
                uniform = torch.rand(warped.shape[-1], generator=generator).clamp_min(1e-20)
                scores[row] = warped[0] - torch.log(-torch.log(uniform)).to(warped)
        return scores

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows; the generators keep their state."""
        self.requests = [self.requests[row] for row in rows]
        self.generators = [self.generators[row] for row in rows]


class Repetition:
    """The repetition penalty: tokens of a row so far, prompt included, become less likely.

    Source: Keskar et al. 2019, "CTRL", section 4.1.
    """

    def __init__(self, penalty: float, prompts: Sequence[Sequence[int]], vocabulary: int, device: str) -> None:
        self.penalty = penalty
        self.occurred = torch.zeros(len(prompts), vocabulary, dtype=torch.bool, device=device)
        for row, prompt in enumerate(prompts):
            self.occurred[row, torch.tensor(prompt, device=device)] = True

    def __call__(self, scores: Tensor) -> Tensor:
        """(rows, vocabulary) logits -> the same, lower for tokens that occurred."""
        lowered = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(self.occurred, lowered, scores)

    def add(self, tokens: Tensor) -> None:
        """(rows,) tokens that were chosen."""
        self.occurred.scatter_(1, tokens[:, None], True)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        self.occurred = self.occurred[list(rows)]


class Choice:
    """Chooses the next tokens of a batch's rows, as `generate` does with the checkpoint's own settings."""

    def __init__(self, requests: Sequence[Request], repetition: Repetition | None = None) -> None:
        sampled = any(request.temperature > 0 for request in requests)
        self.sampling = SeededSampling(requests) if sampled else None
        self.repetition = repetition

    def __call__(self, logits: Tensor) -> Tensor:
        """(rows, vocabulary) -> (rows,) tokens."""
        scores = logits.float()
        if self.repetition:
            scores = self.repetition(scores)
        warped = self.sampling(scores, scores) if self.sampling else scores  # the nucleus never reads the ids
        tokens = warped.argmax(-1)
        if self.repetition:
            self.repetition.add(tokens)
        return tokens

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        for part in (self.sampling, self.repetition):
            if part:
                part.keep(rows)


def decodes_plainly(config: Any) -> bool:
    """Whether a generation config asks for nothing that `Choice` does not do.

    >>> from transformers import GenerationConfig
    >>> decodes_plainly(GenerationConfig(repetition_penalty=1.05)), decodes_plainly(GenerationConfig(num_beams=4))
    (True, False)
    """
    return not changes_decoding(vars(config))
