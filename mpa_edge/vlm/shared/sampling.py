"""The next token from logits with numpy: greedy, or sampled from the request's own seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpa_edge.types import Request


class Sampler:
    """Chooses the tokens of one request. One sampler a request, so that only the request's own seed matters."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.generator = np.random.default_rng(request.seed) if request.temperature > 0 else None

    def __call__(self, logits: NDArray[np.floating]) -> int:
        """(vocabulary,) logits -> token id. Greedy takes the first of the largest.

        Sampling is an argmax over logits with Gumbel noise (Maddison et al. 2014, "A* Sampling", section 2), which is
        minus the logarithm of an exponential variable.
        """
        if self.generator is None:
            return int(logits.argmax())
        warped = np.asarray(logits, np.float64) / self.request.temperature
        if self.request.top_p < 1:
            warped = nucleus(warped, self.request.top_p)
        # as many random numbers per token whatever the nucleus: a logit's last bit does not shift later tokens
        return int((warped - np.log(self.generator.standard_exponential(warped.shape))).argmax())


def nucleus(logits: NDArray[np.float64], top_p: float) -> NDArray[np.float64]:
    """Logits with all but the likeliest tokens that together reach `top_p` at -inf; the likeliest always stays.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.

    >>> nucleus(np.log(np.array([0.1, 0.6, 0.3])), 0.8).round(1).tolist()
    [-inf, -0.5, -1.2]
    """
    share = np.exp(logits - logits.max())
    total = share.sum()
    # all tokens below this share have less than 1 - top_p together; sorting the whole vocabulary would be slow
    likely = np.flatnonzero(share >= (1 - top_p) * total / len(share))
    order = likely[np.argsort(-logits[likely], kind="stable")]
    before = np.cumsum(share[order]) - share[order]
    n = max(1, int((before < top_p * total).sum()))
    kept = np.full_like(logits, -np.inf)
    kept[order[:n]] = logits[order[:n]]
    return kept
