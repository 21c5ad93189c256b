"""The rules by which an export counts as the same model: pure functions over traces, nothing is run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mpa_edge.config.scheme import Tolerance
from mpa_edge.types import Record, Trace

Array = NDArray[Any]
Mismatch = Literal["none", "input", "execution", "unknown"]
NOTHING_IN_COMMON = -1.0
# a grey picture must move the artifact's logits by at least this share of what it moves the checkpoint's
BLANK_SHARE = 0.5


class Parity(Record):
    """How far an export is from its checkpoint, on the probes."""

    tokens_equal: bool
    """The prompts are the same token ids, those of the picture included."""
    image_tokens_equal: bool
    """As many image tokens, and as many embeddings for them."""
    vision_cosine_min: float
    """Smallest cosine of an image token's embedding with its original; -1 where they cannot be paired."""
    max_abs_logit_diff: float
    """Largest difference of a logit while both went the same way."""
    greedy_prefix: float
    """Share of the greedy tokens that are the same, counted from the first, over all probes."""
    blank_image_changes: bool
    """A grey picture changes the logits, and about as much as it changes the checkpoint's."""


class ParityDetails(Record):
    """What lies behind the figures."""

    probes: int
    """Requests that were compared."""
    steps: int
    """Greedy steps whose logits were compared."""
    near_ties: int
    """Probes that parted at two tokens that the checkpoint itself hardly tells apart."""
    greedy_prefix_clear: float
    """Share of compared choices that are equal or near ties: what the tolerance is about (`prefix_shares`)."""
    logit_std: float
    """Standard deviation of the checkpoint's logits: what a difference is held against."""
    relative_logit_diff: float
    """max_abs_logit_diff / logit_std."""
    vision_norm_ratio: float
    """Median length of an embedding over its original's."""
    blank_change: float
    """Largest change of a logit when the picture is greyed, in the export."""
    blank_change_reference: float
    """The same in the checkpoint."""
    pixels_equal: bool | None
    """The vision encoder was given the same numbers; None where the runtime hides them."""
    mismatch: Mismatch
    """Where a difference comes from."""
    census: dict[str, Any] = Field(default_factory=dict)
    """Parameters found in each component, and how much of the adapter is in them."""


@dataclass(frozen=True)
class Pair:
    """One probe, as the checkpoint and as the export saw it."""

    reference: Trace
    artifact: Trace

    @property
    def common(self) -> int:
        """Greedy tokens that are the same, from the first on."""
        pairs = zip(self.reference.tokens, self.artifact.tokens, strict=False)
        return next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), self._shorter)

    @property
    def _shorter(self) -> int:
        return min(len(self.reference.tokens), len(self.artifact.tokens))

    @property
    def comparable(self) -> int:
        """Steps before which both have said the same: their logits answer one question."""
        return min(self.common + 1, self._shorter)

    @property
    def choices(self) -> int:
        """Greedy choices that were compared; an answer that ends too soon chose otherwise."""
        return min(self.common + 1, len(self.reference.tokens))

    @property
    def ends_elsewhere(self) -> bool:
        """The same tokens as far as both go, but one goes on: other end tokens, which no rounding explains."""
        return self.common == self._shorter and len(self.reference.tokens) != len(self.artifact.tokens)

    def margin(self) -> float:
        """How much more the checkpoint likes its own token, where the two part; infinite where they do not."""
        step = self.common
        if step >= self._shorter:
            return float("inf")
        row = self.reference.logits[step]
        return float(row[self.reference.tokens[step]] - row[self.artifact.tokens[step]])


def logit_std(pairs: Sequence[Pair]) -> float:
    """Standard deviation of the checkpoint's logits within a step, averaged over all steps."""
    return float(np.mean([row.std() for pair in pairs for row in pair.reference.logits]))


def largest_logit_diff(pairs: Sequence[Pair]) -> float:
    """Over the steps before which both had said the same; infinite where one is no number or they do not fit."""
    worst = 0.0
    for pair in pairs:
        n = pair.comparable
        ours, theirs = pair.reference.logits[:n], pair.artifact.logits[:n]
        if n == 0 or ours.shape != theirs.shape or not np.isfinite(theirs).all():
            return float("inf")
        worst = max(worst, float(np.abs(ours - theirs).max()))
    return worst


def cosines(ours: Array, theirs: Array) -> Array:
    """(n, hidden) x 2 -> (n,) cosines; 0 where a vector has no length or holds what is no number."""
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        found = (ours * theirs).sum(1) / lengths
    return np.where(np.isfinite(found), found, 0.0)


def smallest_cosine(pairs: Sequence[Pair]) -> float:
    """Of all image tokens; -1 where the embeddings cannot be paired."""
    if any(pair.reference.vision.shape != pair.artifact.vision.shape for pair in pairs):
        return NOTHING_IN_COMMON
    found = [float(cosines(pair.reference.vision, pair.artifact.vision).min(initial=1.0)) for pair in pairs]
    return min(found, default=NOTHING_IN_COMMON)


def norm_ratio(pairs: Sequence[Pair]) -> float:
    """Median length of an embedding over its original's; 0 where they cannot be paired."""
    if smallest_cosine(pairs) == NOTHING_IN_COMMON:
        return 0.0
    ours, theirs = (
        np.concatenate([np.linalg.norm(trace.vision, axis=1) for trace in traces])
        for traces in ([pair.reference for pair in pairs], [pair.artifact for pair in pairs])
    )
    return float(np.median(theirs / np.maximum(ours, 1e-12)))


def prefix_shares(pairs: Sequence[Pair], near_tie: float) -> tuple[float, float, int]:
    """(share of equal greedy tokens, share of compared choices that are explained, probes with a near tie).

    The first share is the plain one: from its first different token on, all of a probe counts as different. But random
    probes have near ties, where any rounding picks the other token, and after one of those nothing can be compared. So
    the bound is on the second share, over the steps up to the parting: a choice is explained where the token is the
    same, or where the checkpoint prefers its own by no more than `near_tie`, the difference that the scheme allows.
    """
    total, compared = sum(len(pair.reference.tokens) for pair in pairs), sum(pair.choices for pair in pairs)
    same = sum(pair.common for pair in pairs)
    ties = sum(pair.margin() <= near_tie for pair in pairs)
    return same / total if total else 0.0, (same + ties) / compared if compared else 0.0, ties


def blank_change(traces: Sequence[Trace], blanks: Sequence[Trace]) -> float:
    """Largest change of a first-step logit when the picture is greyed; 0 where a trace is empty or no number."""
    changes = [0.0]
    for seen, blank in zip(traces, blanks, strict=True):
        if seen.logits[:1].shape == blank.logits[:1].shape and len(seen.logits):
            changes.append(float(np.abs(seen.logits[0] - blank.logits[0]).max()))
    return max((change for change in changes if np.isfinite(change)), default=0.0)


def image_tokens(trace: Trace, image_id: int) -> tuple[int, int]:
    """(image tokens in the prompt, embeddings made for them)."""
    return trace.input_ids.count(image_id), len(trace.vision)


@dataclass(frozen=True)
class Compared:
    """Two sets of traces, compared."""

    parity: Parity
    details: ParityDetails
    reasons: tuple[str, ...]
    """Why the export is not the same model, one line each; empty where it is."""


def compare(pairs: Sequence[Pair], blanks: Sequence[tuple[int, Pair]], tolerance: Tolerance, image_id: int) -> Compared:
    """Hold every probe against its original. `blanks` are greyed probes, each with the index of its coloured one."""
    std, diff = logit_std(pairs), largest_logit_diff(pairs)
    allowed = tolerance.max_abs_logit_diff * std
    share, clear, ties = prefix_shares(pairs, allowed)
    change, wanted = (
        blank_change([getattr(pairs[i], side) for i, _ in blanks], [getattr(pair, side) for _, pair in blanks])
        for side in ("artifact", "reference")
    )
    parity = Parity(
        tokens_equal=all(pair.reference.input_ids == pair.artifact.input_ids for pair in pairs),
        image_tokens_equal=all(
            image_tokens(pair.reference, image_id) == image_tokens(pair.artifact, image_id) for pair in pairs
        ),
        vision_cosine_min=smallest_cosine(pairs),
        max_abs_logit_diff=diff,
        greedy_prefix=share,
        blank_image_changes=change > 0 and change >= BLANK_SHARE * wanted,
    )
    details = ParityDetails(
        probes=len(pairs),
        steps=sum(pair.comparable for pair in pairs),
        near_ties=ties,
        greedy_prefix_clear=clear,
        logit_std=std,
        relative_logit_diff=diff / std if std else float("inf"),
        vision_norm_ratio=norm_ratio(pairs),
        blank_change=change,
        blank_change_reference=wanted,
        pixels_equal=pixels_equal(pairs),
        mismatch="none",
    )
    return Compared(parity, details, tuple(reasons(pairs, parity, details, tolerance, image_id)))


def pixels_equal(pairs: Sequence[Pair]) -> bool | None:
    """Whether both vision encoders were given the same numbers; None where a runtime hides them."""
    if any(pair.artifact.pixels_sha256 is None for pair in pairs):
        return None
    return all(pair.artifact.pixels_sha256 == pair.reference.pixels_sha256 for pair in pairs)


def reasons(
    pairs: Sequence[Pair], parity: Parity, details: ParityDetails, tolerance: Tolerance, image_id: int
) -> list[str]:
    """Everything that is wrong, the first cause first."""
    found = []
    if not parity.image_tokens_equal:
        found.append(_image_token_reason(pairs, image_id))
    if not parity.tokens_equal:
        found.append(_token_reason(pairs))
    if parity.vision_cosine_min < tolerance.vision_cosine_min:
        found.append(_vision_reason(parity, tolerance))
    if not parity.max_abs_logit_diff <= tolerance.max_abs_logit_diff * details.logit_std:
        found.append(_logit_reason(parity, details, tolerance))
    if details.greedy_prefix_clear < tolerance.greedy_prefix:
        share, wanted = details.greedy_prefix_clear, tolerance.greedy_prefix
        found.append(f"greedy tokens: {share:.0%} of the choices are equal or near ties, the scheme wants {wanted:.0%}")
    if any(pair.ends_elsewhere for pair in pairs):
        found.append("end of the answer: from the same tokens on, one of the two goes on and the other one stops")
    if not parity.blank_image_changes:
        found.append(
            f"picture: a grey one changes the logits by {details.blank_change:.2g}, in the checkpoint by "
            f"{details.blank_change_reference:.2g}: the export does not look at it"
        )
    return found


def _image_token_reason(pairs: Sequence[Pair], image_id: int) -> str:
    pair = next(p for p in pairs if image_tokens(p.reference, image_id) != image_tokens(p.artifact, image_id))
    tokens, rows = image_tokens(pair.artifact, image_id)
    wanted = image_tokens(pair.reference, image_id)
    return f"image tokens: {tokens} with {rows} embeddings, in the checkpoint {wanted[0]} with {wanted[1]}"


def _token_reason(pairs: Sequence[Pair]) -> str:
    pair = next(p for p in pairs if p.reference.input_ids != p.artifact.input_ids)
    ours, theirs = pair.reference.input_ids, pair.artifact.input_ids
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return (
        f"token ids: the prompt has {len(theirs)} tokens, in the checkpoint {len(ours)}; from token {at} on they are "
        f"{_few(theirs, at)}, in the checkpoint {_few(ours, at)}"
    )


def _few(ids: Sequence[int], at: int) -> str:
    return " ".join(map(str, ids[at : at + 4])) or "none"


def _vision_reason(parity: Parity, tolerance: Tolerance) -> str:
    if parity.vision_cosine_min == NOTHING_IN_COMMON:
        return "vision embeddings: their number or width is another"
    return f"vision embeddings: cosine {parity.vision_cosine_min:.5f}, must be {tolerance.vision_cosine_min:g} at least"


def _logit_reason(parity: Parity, details: ParityDetails, tolerance: Tolerance) -> str:
    if not np.isfinite(parity.max_abs_logit_diff):
        return "logits: some are no numbers, or another vocabulary"
    return (
        f"logits: differ by {parity.max_abs_logit_diff:.3g}, which is {details.relative_logit_diff:.3g} of their "
        f"standard deviation; the scheme allows {tolerance.max_abs_logit_diff:g} of it"
    )
