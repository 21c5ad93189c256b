"""When an export counts as the same model: pure functions over traces, nothing is run here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpa_edge.config.scheme import Tolerance
from mpa_edge.types import Record, Trace

Array = NDArray[Any]
Mismatch = Literal["none", "input", "execution", "unknown"]
NOTHING_IN_COMMON = -1.0
# a gray image must move the export's logits by at least this share of what it moves the checkpoint's
BLANK_SHARE = 0.5
# nearer to the base than this share of the way from base to aligned: the export is the base model's
BASE_SHARE = 0.5
# as much nearer to the base than to aligned, in shares of the divergence between both; rounding leaves a third of it
TEXT_SHARE = 0.3
# a smaller relative change of the embeddings, or divergence of the distributions, between base and aligned is no change
MIN_CHANGE, MIN_KL = 1e-4, 1e-6
# what the alignment changed can be told from rounding where it is more standard errors than this, and rounding has no
# more than so many times its divergence
SURE, ROUNDING = 3.0, 1.0
VISION, DECODER, TEMPLATE, PIXELS = "vision encoder", "decoder", "chat template", "preprocessing"


class Parity(Record):
    """How far an export is from its checkpoint, on the probes."""

    tokens_equal: bool
    """The prompts are the same token ids, those of the image included."""
    image_tokens_equal: bool
    """As many image tokens, and as many embeddings for them."""
    vision_cosine_min: float
    """Smallest cosine of an image token's embedding with its original; -1 where they cannot be paired."""
    kl: float
    """Mean divergence of the next-token distributions, KL(checkpoint, export) in nats, on text and answers."""
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
    """Next-token distributions that were compared."""
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
    vision_toward_aligned: float | None = None
    """Where the image embeddings lie on the way from the base model (0) to the aligned one (1)."""
    kl_base: float | None = None
    """The export's divergence from the base model on the text, to be compared with `kl_aligned`."""
    kl_aligned: float | None = None
    """The same from the aligned model."""


class Reason(NamedTuple):
    """One thing that is wrong."""

    component: str
    """Where."""
    text: str
    """What, in one line."""


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
    def ends_elsewhere(self) -> bool:
        """The same tokens as far as both go, but one is longer: other end tokens, which no rounding explains."""
        return self.common == self.shorter and len(self.reference.tokens) != len(self.artifact.tokens)


@dataclass(frozen=True)
class Compared:
    """Two sets of traces, compared."""

    parity: Parity
    details: ParityDetails
    reasons: tuple[Reason, ...]
    """Why the export is not the same model; empty where it is."""
    vision_equal: bool
    """The image embeddings are within the tolerance."""


def compare(
    pairs: Sequence[Pair], texts: Sequence[tuple[Array, Array]], tolerance: Tolerance, image_id: int
) -> Compared:
    """Compare every probe with its original.

    Args:
        pairs: The probes; the last is the first one with a gray image.
        texts: (tokens, vocabulary) logits before the tokens of a text, in the checkpoint and in the export.
        tolerance: Of the scheme.
        image_id: Id of the token that stands for one image embedding.
    """
    *pairs, blank = pairs
    logit_std = float(np.mean([row.std() for pair in pairs for row in pair.reference.logits]))
    logit_diff = largest_logit_diff(pairs)
    change = blank_change(pairs[0].artifact, blank.artifact)
    wanted = blank_change(pairs[0].reference, blank.reference)
    digests = [(pair.reference.pixels_sha256, pair.artifact.pixels_sha256) for pair in pairs]
    hidden = any(artifact is None for _, artifact in digests)
    steps = [(pair.reference.logits[: pair.comparable], pair.artifact.logits[: pair.comparable]) for pair in pairs]
    kl = np.concatenate([divergences(ours, theirs) for ours, theirs in (*texts, *steps)])
    total, same = sum(len(pair.reference.tokens) for pair in pairs), sum(pair.common for pair in pairs)
    parity = Parity(
        tokens_equal=all(pair.reference.input_ids == pair.artifact.input_ids for pair in pairs),
        image_tokens_equal=all(
            image_tokens(pair.reference, image_id) == image_tokens(pair.artifact, image_id) for pair in pairs
        ),
        vision_cosine_min=smallest_cosine(pairs),
        kl=float(kl.mean()),
        max_abs_logit_diff=logit_diff,
        greedy_prefix=same / total if total else 0.0,
        blank_image_changes=change > 0 and change >= BLANK_SHARE * wanted,
    )
    details = ParityDetails(
        probes=len(pairs),
        steps=len(kl),
        logit_std=logit_std,
        relative_logit_diff=logit_diff / logit_std if logit_std else float("inf"),
        blank_change=change,
        blank_change_reference=wanted,
        pixels_equal=None if hidden else all(ours == theirs for ours, theirs in digests),
    )
    found = tuple(reasons(pairs, parity, details, tolerance, image_id))
    return Compared(parity, details, found, parity.vision_cosine_min >= tolerance.vision_cosine_min)


def divergences(reference: Array, other: Array) -> Array:
    """KL(reference, other) of each row of logits, in nats; infinite where it is no number, or the shapes differ.

    A runtime whose context ends may have fewer rows.
    """
    reference = reference[: len(other)]
    if reference.shape != other.shape or not len(other):
        return np.array([np.inf])
    found = []
    for ours, theirs in zip(reference, other, strict=True):  # not all rows at once: a vocabulary can be 150,000 wide
        p, q = log_softmax(ours), log_softmax(theirs)
        found.append(max(float((np.exp(p) * (p - q)).sum()), 0.0))
    return np.where(np.isfinite(found), found, np.inf)


def log_softmax(logits: Array) -> Array:
    """Logarithms of the probabilities.

    >>> log_softmax(np.array([0.0, 0.0])).round(3).tolist()
    [-0.693, -0.693]
    """
    with np.errstate(all="ignore"):
        shifted: Array = logits.astype(np.float64) - logits.max()
        return shifted - np.log(np.exp(shifted).sum())


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


def blank_change(seen: Trace, blank: Trace) -> float:
    """Largest change of a first-step logit with a gray image; 0 where a trace is empty or not finite."""
    if seen.logits[:1].shape != blank.logits[:1].shape or not len(seen.logits):
        return 0.0
    change = float(np.abs(seen.logits[0] - blank.logits[0]).max())
    return change if np.isfinite(change) else 0.0


def reasons(
    pairs: Sequence[Pair], parity: Parity, details: ParityDetails, tolerance: Tolerance, image_id: int
) -> Iterator[Reason]:
    """Everything that is wrong, causes before their consequences."""
    if not parity.image_tokens_equal:
        sides = [(image_tokens(pair.artifact, image_id), image_tokens(pair.reference, image_id)) for pair in pairs]
        (tokens, rows), (wanted_tokens, wanted_rows) = next((ours, theirs) for ours, theirs in sides if ours != theirs)
        yield Reason(
            PIXELS,
            f"{tokens} image tokens with {rows} embeddings, in the checkpoint {wanted_tokens} with {wanted_rows}",
        )
    elif not parity.tokens_equal:
        pair = next(pair for pair in pairs if pair.reference.input_ids != pair.artifact.input_ids)
        wanted, ids = pair.reference.input_ids, pair.artifact.input_ids
        differ = (i for i, (ours, theirs) in enumerate(zip(wanted, ids, strict=False)) if ours != theirs)
        at = next(differ, min(len(wanted), len(ids)))
        few, wanted_few = (" ".join(map(str, side[at : at + 4])) or "none" for side in (ids, wanted))
        yield Reason(
            TEMPLATE,
            f"the prompt has {len(ids)} tokens, in the checkpoint {len(wanted)}; from token {at} on they are {few}, "
            f"in the checkpoint {wanted_few}",
        )
    seen = parity.vision_cosine_min >= tolerance.vision_cosine_min
    if parity.vision_cosine_min == NOTHING_IN_COMMON:
        yield Reason(VISION, "its embeddings differ in number or width from the checkpoint's")
    elif not seen:
        least = tolerance.vision_cosine_min
        yield Reason(
            VISION,
            f"cosine {parity.vision_cosine_min:.5f} with the checkpoint's embeddings, must be {least:g} at least",
        )
    if not np.isfinite(parity.kl):
        yield Reason(DECODER, "some logits are not finite, or the vocabulary differs")
    elif not parity.kl <= tolerance.kl_max:
        because = "" if seen else ", perhaps because of the image embeddings"
        yield Reason(
            DECODER,
            f"its next-token distributions are KL {parity.kl:.2g} from the checkpoint's on {details.steps} tokens, "
            f"the scheme allows {tolerance.kl_max:g}{because}",
        )
    if any(pair.ends_elsewhere for pair in pairs):
        yield Reason(DECODER, "after the same tokens, one of the two answers continues and the other one stops")
    if not parity.blank_image_changes and np.isfinite(parity.kl):
        yield Reason(
            DECODER if seen else VISION,
            f"a gray image changes the logits by {details.blank_change:.2g}, in the checkpoint by "
            f"{details.blank_change_reference:.2g}: the export ignores the image",
        )


def compare_with_base(
    embeddings: tuple[Array, Array, Array], texts: tuple[Array, Array, Array]
) -> tuple[dict[str, float], list[Reason]]:
    """Whether an export is the aligned model or the base, whatever its tolerance allows.

    `embeddings` of an image and `texts`, logits before the tokens of a text, are of the aligned model, the base and the
    export. Returns fields of `ParityDetails`, and a reason for each side that is the base's. An export that is as far
    from both, because rounding changes more than the alignment did, gives none.
    """
    found: dict[str, float] = {}
    wrong: list[Reason] = []
    aligned, base, export = (array.astype(np.float64) for array in embeddings)
    if aligned.shape == base.shape == export.shape:
        change, moved = aligned - base, export - base
        if np.linalg.norm(change) > MIN_CHANGE * np.linalg.norm(base) and np.isfinite(moved).all():
            found["vision_toward_aligned"] = round(float((moved * change).sum() / (change**2).sum()), 4)
            if np.linalg.norm(moved) < BASE_SHARE * np.linalg.norm(change):
                wrong.append(Reason(VISION, "its embeddings are the base model's, not the aligned model's"))
    aligned, base, export = (array[: len(texts[2])] for array in texts)
    from_aligned, from_base = divergences(aligned, export), divergences(base, export)
    if not (np.isfinite(from_aligned).all() and np.isfinite(from_base).all()) or aligned.shape != base.shape:
        return found, wrong
    nearer_base, way = from_aligned - from_base, float(divergences(base, aligned).mean())
    found |= {"kl_aligned": float(from_aligned.mean()), "kl_base": float(from_base.mean())}
    error = nearer_base.std(ddof=1) / np.sqrt(len(nearer_base)) if len(nearer_base) > 1 else np.inf
    # the base differs by `way`, the aligned model by -way; rounding that leads further away from both than that, or
    # further toward the base than the base itself, has a direction of its own and tells nothing
    low, high = TEXT_SHARE * way, (2 - TEXT_SHARE) * way
    told_apart = way > max(SURE * error, MIN_KL) and from_base.mean() < ROUNDING * way
    if told_apart and low < nearer_base.mean() < high:
        told = f"KL {from_base.mean():.2g} from the base model's and {from_aligned.mean():.2g} from the aligned one's"
        wrong.append(Reason(DECODER, f"its next-token distributions are {told}: they are the base model's"))
    return found, wrong
