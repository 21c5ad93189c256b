"""How sure a model is of what it says: the log-probabilities of the tokens that it chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from torch import Tensor


class Confidence(LogitsProcessor):
    """Looks on while tokens are chosen: by the largest logit, after `sampling` where some rows sample.

    One number a token and row is kept, never the logits: a batch of them over a large vocabulary is gigabytes.
    """

    def __init__(self, sampling: LogitsProcessor | None = None) -> None:
        self.sampling = sampling
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, vocabulary) logits -> what the token is chosen from; the model's own probability is noted."""
        warped = scores if self.sampling is None else self.sampling(input_ids, scores)
        chosen = warped.argmax(-1, keepdim=True)
        self.steps.append((scores.gather(1, chosen)[:, 0] - scores.logsumexp(-1)).float().cpu())
        return warped

    def mean(self, row: int, n_tokens: int) -> float | None:
        """Mean natural log-probability of the first `n_tokens` of a row; None where there are none."""
        said = torch.stack(self.steps[:n_tokens])[:, row] if n_tokens else None
        return None if said is None else float(said.mean())
