"""The next token from logits with numpy: greedy, or sampled from the request's own seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpa_edge.types import Request


class Sampler:
    """Chooses the tokens of one request. One sampler a request, so that only the request's own seed matters."""

    def __init__(self, request: Request, penalty: float = 1.0, prompt: Iterable[int] = ()) -> None:
        """`penalty`: `Artifact.repetition_penalty`; `prompt`: ids of the prompt, to which it applies as well."""
        self.request, self.penalty, self.occurred = request, penalty, dict.fromkeys(prompt)
        self.generator = np.random.default_rng(request.seed) if request.temperature > 0 else None

    def __call__(self, logits: NDArray[np.floating]) -> int:
        """(vocabulary,) logits -> token id. Greedy takes the first of the largest.

        Sampling is an argmax over logits with Gumbel noise (Maddison et al. 2014, "A* Sampling", section 2), which is
        minus the logarithm of an exponential variable.
        """
        token = self._choose(self.scores(logits))
        self.occurred[token] = None
        return token

    def scores(self, logits: NDArray[np.floating]) -> NDArray[np.floating]:
        """(vocabulary,) logits -> the same, lower for tokens that occurred, where there is a penalty.

        Source: Keskar et al. 2019, "CTRL", section 4.1.
        """
        if self.penalty == 1.0:
            return logits
        ids, lowered = list(self.occurred), logits.copy()
        of_ids = lowered[ids]
        lowered[ids] = np.where(of_ids < 0, of_ids * self.penalty, of_ids / self.penalty)
        return lowered

    def _choose(self, logits: NDArray[np.floating]) -> int:
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


NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("num_beams", "guidance_scale", "encoder_repetition_penalty"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("bad_words_ids", "sequence_bias", "exponential_decay_length_penalty", "max_time"), None),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "stop_strings", "watermarking_config"), None),
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "remove_invalid_values": False,
}
"""Settings of a generation_config.json that change greedy decoding -> the value that, like None, has no effect."""


def changes_decoding(generation: Mapping[str, Any]) -> list[str]:
    """Settings of a generation config that ask for more than greedy decoding with a repetition penalty.

    >>> changes_decoding({"repetition_penalty": 1.05, "num_beams": 4, "min_length": 0})
    ['num_beams']
    """
    return [name for name, neutral in NEUTRAL.items() if generation.get(name) not in (None, neutral)]
