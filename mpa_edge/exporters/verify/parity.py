"""When an export counts as the same model: pure functions over traces, nothing is run here."""

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
# a gray image must move the export's logits by at least this share of what it moves the checkpoint's
BLANK_SHARE = 0.5
# nearer to the base than this share of the way from base to aligned: the export is the base model's
BASE_SHARE = 0.5
# a smaller relative change between base and aligned is no change
MIN_CHANGE = 1e-4


class Parity(Record):
    """How far an export is from its checkpoint, on the probes."""

    tokens_equal: bool
    """The prompts are the same token ids, those of the image included."""
    image_tokens_equal: bool
    """As many image tokens, and as many embeddings for them."""
    vision_cosine_min: float
    """Smallest cosine of an image token's embedding with its original; -1 where they cannot be paired."""
    max_abs_logit_diff: float
    """Largest difference of a logit over the steps up to the first different token."""
    greedy_prefix: float
    """Share of the greedy tokens that are the same, counted from the first, over all probes."""
    blank_image_changes: bool
    """A gray image changes the logits, and about as much as it changes the checkpoint's."""


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
    blank_change: float
    """Largest change of a logit when the image is replaced by a gray one, in the export."""
    blank_change_reference: float
    """The same in the checkpoint."""
    pixels_equal: bool | None
    """The vision encoder was given the same numbers; None where the runtime hides them."""
    toward_aligned: dict[str, float] = Field(default_factory=dict)
    """Where vision embeddings and logits lie on the way from the base model (0) to the aligned one (1)."""


@dataclass(frozen=True)
class Pair:
    """One probe, in the checkpoint and in the export."""

    reference: Trace
    artifact: Trace

    @property
    def shorter(self) -> int:
        """Tokens of the shorter answer."""
        return min(len(self.reference.tokens), len(self.artifact.tokens))

    @property
    def common(self) -> int:
        """Greedy tokens that are the same, from the first on."""
        pairs = zip(self.reference.tokens, self.artifact.tokens, strict=False)
        return next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), self.shorter)

    @property
    def comparable(self) -> int:
        """Steps that follow the same tokens in both, so that their logits can be compared."""
        return min(self.common + 1, self.shorter)

    @property
    def choices(self) -> int:
        """Greedy choices that were compared; an answer that ends too early chose differently."""
        return min(self.common + 1, len(self.reference.tokens))

    @property
    def ends_elsewhere(self) -> bool:
        """The same tokens as far as both go, but one is longer: other end tokens, which no rounding explains."""
        return self.common == self.shorter and len(self.reference.tokens) != len(self.artifact.tokens)

    @property
    def margin(self) -> float:
        """How much more the checkpoint prefers its own token where the two part; infinite where they do not."""
        step = self.common
        if step >= self.shorter:
            return float("inf")
        row = self.reference.logits[step]
        return float(row[self.reference.tokens[step]] - row[self.artifact.tokens[step]])


@dataclass(frozen=True)
class Compared:
    """Two sets of traces, compared."""

    parity: Parity
    details: ParityDetails
    reasons: tuple[str, ...]
    """Why the export is not the same model, one line each; empty where it is."""
    vision_equal: bool
    """The image embeddings are within the tolerance."""


def compare(pairs: Sequence[Pair], tolerance: Tolerance, image_id: int) -> Compared:
    """Compare every probe with its original.

    Args:
        pairs: The probes; the last is the first one with a gray image.
        tolerance: Of the scheme.
        image_id: Id of the token that stands for one image embedding.
    """
    *pairs, blank = pairs
    logit_std = float(np.mean([row.std() for pair in pairs for row in pair.reference.logits]))
    logit_diff = largest_logit_diff(pairs)
    greedy_prefix, clear, ties = prefix_shares(pairs, near_tie=tolerance.max_abs_logit_diff * logit_std)
    change = blank_change(pairs[0].artifact, blank.artifact)
    wanted = blank_change(pairs[0].reference, blank.reference)
    digests = [(pair.reference.pixels_sha256, pair.artifact.pixels_sha256) for pair in pairs]
    hidden = any(artifact is None for _, artifact in digests)
    parity = Parity(
        tokens_equal=all(pair.reference.input_ids == pair.artifact.input_ids for pair in pairs),
        image_tokens_equal=all(
            image_tokens(pair.reference, image_id) == image_tokens(pair.artifact, image_id) for pair in pairs
        ),
        vision_cosine_min=smallest_cosine(pairs),
        max_abs_logit_diff=logit_diff,
        greedy_prefix=greedy_prefix,
        blank_image_changes=change > 0 and change >= BLANK_SHARE * wanted,
    )
    details = ParityDetails(
        probes=len(pairs),
        steps=sum(pair.comparable for pair in pairs),
        near_ties=ties,
        greedy_prefix_clear=clear,
        logit_std=logit_std,
        relative_logit_diff=logit_diff / logit_std if logit_std else float("inf"),
        blank_change=change,
        blank_change_reference=wanted,
        pixels_equal=None if hidden else all(ours == theirs for ours, theirs in digests),
    )
    found = tuple(reasons(pairs, parity, details, tolerance, image_id))
    return Compared(parity, details, found, parity.vision_cosine_min >= tolerance.vision_cosine_min)


def image_tokens(trace: Trace, image_id: int) -> tuple[int, int]:
    """(image tokens in the prompt, embeddings made for them)."""
    return trace.input_ids.count(image_id), len(trace.vision)


def smallest_cosine(pairs: Sequence[Pair]) -> float:
    """Over all image tokens; 0 where a vector has no length or is not finite, -1 where they cannot be paired."""
    smallest = []
    for pair in pairs:
        ours, theirs = pair.reference.vision, pair.artifact.vision
        if ours.shape != theirs.shape:
            return NOTHING_IN_COMMON
        with np.errstate(all="ignore"):
            cosines = (ours * theirs).sum(1) / (np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1))
        smallest.append(float(np.where(np.isfinite(cosines), cosines, 0.0).min(initial=1.0)))
    return min(smallest, default=NOTHING_IN_COMMON)


def largest_logit_diff(pairs: Sequence[Pair]) -> float:
    """Over the comparable steps; infinite where a logit is not finite or the shapes differ."""
    largest = 0.0
    for pair in pairs:
        n = pair.comparable
        ours, theirs = pair.reference.logits[:n], pair.artifact.logits[:n]
        if n == 0 or ours.shape != theirs.shape or not np.isfinite(theirs).all():
            return float("inf")
        largest = max(largest, float(np.abs(ours - theirs).max()))
    return largest


def prefix_shares(pairs: Sequence[Pair], near_tie: float) -> tuple[float, float, int]:
    """(share of equal greedy tokens, share of compared choices that are explained, probes with a near tie).

    In the first share, all tokens of a probe count as different from its first different token on. But random probes
    have near ties, where any rounding picks the other token, and after one of those nothing can be compared. So the
    tolerance applies to the second share, over the steps up to the parting: a choice is explained where the token is
    the same, or where the checkpoint prefers its own by no more than `near_tie`, the difference that the scheme allows.
    """
    total, compared = sum(len(pair.reference.tokens) for pair in pairs), sum(pair.choices for pair in pairs)
    same = sum(pair.common for pair in pairs)
    ties = sum(pair.margin <= near_tie for pair in pairs)
    return same / total if total else 0.0, (same + ties) / compared if compared else 0.0, ties


def blank_change(seen: Trace, blank: Trace) -> float:
    """Largest change of a first-step logit with a gray image; 0 where a trace is empty or not finite."""
    if seen.logits[:1].shape != blank.logits[:1].shape or not len(seen.logits):
        return 0.0
    change = float(np.abs(seen.logits[0] - blank.logits[0]).max())
    return change if np.isfinite(change) else 0.0


def reasons(
    pairs: Sequence[Pair], parity: Parity, details: ParityDetails, tolerance: Tolerance, image_id: int
) -> list[str]:
    """Everything that is wrong, causes before their consequences."""
    found = []
    if not parity.image_tokens_equal:
        sides = [(image_tokens(pair.artifact, image_id), image_tokens(pair.reference, image_id)) for pair in pairs]
        (tokens, rows), (wanted_tokens, wanted_rows) = next((ours, theirs) for ours, theirs in sides if ours != theirs)
        found.append(
            f"image tokens: {tokens} with {rows} embeddings, in the checkpoint {wanted_tokens} with {wanted_rows}"
        )
    if not parity.tokens_equal:
        pair = next(pair for pair in pairs if pair.reference.input_ids != pair.artifact.input_ids)
        wanted, ids = pair.reference.input_ids, pair.artifact.input_ids
        differ = (i for i, (ours, theirs) in enumerate(zip(wanted, ids, strict=False)) if ours != theirs)
        at = next(differ, min(len(wanted), len(ids)))
        few, wanted_few = (" ".join(map(str, side[at : at + 4])) or "none" for side in (ids, wanted))
        found.append(
            f"token ids: the prompt has {len(ids)} tokens, in the checkpoint {len(wanted)}; from token {at} on they "
            f"are {few}, in the checkpoint {wanted_few}"
        )
    if parity.vision_cosine_min == NOTHING_IN_COMMON:
        found.append("vision embeddings: their number or width differs")
    elif parity.vision_cosine_min < tolerance.vision_cosine_min:
        least = tolerance.vision_cosine_min
        found.append(f"vision embeddings: cosine {parity.vision_cosine_min:.5f}, must be {least:g} at least")
    if not np.isfinite(parity.max_abs_logit_diff):
        found.append("logits: some are not finite, or the vocabulary differs")
    elif not parity.max_abs_logit_diff <= tolerance.max_abs_logit_diff * details.logit_std:
        found.append(
            f"logits: differ by {parity.max_abs_logit_diff:.3g}, which is {details.relative_logit_diff:.3g} of their "
            f"standard deviation; the scheme allows {tolerance.max_abs_logit_diff:g} of it"
        )
    if details.greedy_prefix_clear < tolerance.greedy_prefix:
        share, least = details.greedy_prefix_clear, tolerance.greedy_prefix
        found.append(
            f"greedy tokens: {share:.0%} of the choices are equal or near ties, the scheme requires {least:.0%}"
        )
    if any(pair.ends_elsewhere for pair in pairs):
        found.append("end of the answer: after the same tokens, one of the two continues and the other one stops")
    if not parity.blank_image_changes:
        found.append(
            f"image: a gray one changes the logits by {details.blank_change:.2g}, in the checkpoint by "
            f"{details.blank_change_reference:.2g}: the export ignores it"
        )
    return found


def compare_with_base(
    aligned: Sequence[Trace], base: Sequence[Trace], artifact: Sequence[Trace]
) -> tuple[dict[str, float], list[str]]:
    """Whether an export is the aligned model or the base, whatever its tolerance allows.

    Returns where the export lies on the way from base (0) to aligned (1), by its vision embeddings and by its
    first-step logits, and one reason for each of these that lies at the base. Rounding that is as large as what the
    alignment changed puts an export near neither of the two: then there is no reason.
    """
    positions: dict[str, float] = {}
    found: list[str] = []
    for name in ("vision embeddings", "logits"):
        sides = [
            [(trace.vision if name != "logits" else trace.logits[:1]).astype(np.float64) for trace in traces]
            for traces in (aligned, base, artifact)
        ]
        if any(len({array.shape for array in probe}) > 1 for probe in zip(*sides, strict=True)):
            continue
        after, before, export = (np.concatenate([array.ravel() for array in side]) for side in sides)
        change, moved = after - before, export - before
        if np.linalg.norm(change) <= MIN_CHANGE * np.linalg.norm(before) or not np.isfinite(moved).all():
            continue
        positions[name] = round(float(moved @ change / (change @ change)), 4)
        if np.linalg.norm(moved) < BASE_SHARE * np.linalg.norm(change):
            found.append(f"adapter: the {name} are the base model's, not the aligned model's")
    return positions, found
