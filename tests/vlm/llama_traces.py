"""When two traces are of the same model, though one of them rounds more."""

from __future__ import annotations

import numpy as np

from mpa_edge.types import Trace


def cosines(one: Trace, other: Trace) -> np.ndarray:
    """(image tokens,) of the embeddings with each other."""
    lengths = np.linalg.norm(one.vision, axis=1) * np.linalg.norm(other.vision, axis=1)
    return (one.vision * other.vision).sum(1) / lengths


def same_way(one: Trace, other: Trace, tolerance: float) -> None:
    """The same logits as long as both went the same way; they part only where the checkpoint hardly tells two apart."""
    pairs = zip(one.tokens, other.tokens, strict=False)
    common = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), len(other.tokens))
    np.testing.assert_allclose(one.logits[: common + 1], other.logits[: common + 1], atol=tolerance, rtol=0)
    if common < len(other.tokens):
        there = other.logits[common]
        assert there[other.tokens[common]] - there[one.tokens[common]] < 2 * tolerance
    else:
        assert len(one.tokens) == common
