"""The rules of the parity check, on made-up traces: every rule lets the right one through and stops the wrong one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mpa_edge.config.scheme import Tolerance
from mpa_edge.exporters.verify.parity import Compared, Pair, compare, compare_with_base, prefix_shares
from mpa_edge.types import Trace

IMAGE, VOCABULARY, HIDDEN = 5, 40, 16
TOLERANCE = Tolerance(vision_cosine_min=0.99, max_abs_logit_diff=0.1, greedy_prefix=0.9)


def trace(seed: int, steps: int = 6, n_image: int = 4) -> Trace:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (steps, VOCABULARY)).astype(np.float32)
    logits[np.arange(steps), logits.argmax(1)] += 3  # no near tie by chance
    ids = (1, 7, *[IMAGE] * n_image, 8, 9)
    vision = random.normal(size=(n_image, HIDDEN)).astype(np.float32)
    return Trace(ids, "a" * 64, vision, logits, tuple(logits.argmax(1).tolist()))


def changed(one: Trace, **values: object) -> Trace:
    return replace(one, **values)


def compared(
    *artifacts: Trace, reference: Trace | None = None, blank: Trace | None = None, tolerance: Tolerance = TOLERANCE
) -> Compared:
    """Each artifact beside trace(0); the gray image does to both what another seed does."""
    truth, gray = reference or trace(0), trace(99)
    pairs = [Pair(truth, artifact) for artifact in artifacts]
    return compare([*pairs, Pair(gray, blank or gray)], tolerance, IMAGE)


def only_reason(found: Compared) -> str:
    assert len(found.reasons) == 1, found.reasons
    return found.reasons[0]


def with_logits(one: Trace, logits: np.ndarray) -> Trace:
    return replace(one, logits=logits.astype(np.float32), tokens=tuple(logits.argmax(1).tolist()))


def test_the_same_model_passes() -> None:
    found = compared(trace(0), trace(0))
    assert found.reasons == ()
    assert found.parity.tokens_equal
    assert found.parity.image_tokens_equal
    assert found.parity.blank_image_changes
    assert found.parity.greedy_prefix == 1
    assert found.parity.max_abs_logit_diff == 0
    assert found.parity.vision_cosine_min == pytest.approx(1)
    assert found.details.pixels_equal


def test_rounding_passes() -> None:
    noise = np.random.default_rng(1).uniform(-0.05, 0.05, (6, VOCABULARY))
    found = compared(with_logits(trace(0), trace(0).logits + noise))
    assert found.reasons == ()
    assert 0.04 < found.parity.max_abs_logit_diff < 0.05


def test_other_token_ids() -> None:
    other = changed(trace(0), input_ids=(1, 7, *[IMAGE] * 4, 8, 8))
    assert only_reason(compared(trace(0), other)).startswith(
        "token ids: the prompt has 8 tokens, in the checkpoint 8; "
    )


def test_one_image_token_more() -> None:
    longer = changed(trace(0), input_ids=(1, 7, *[IMAGE] * 5, 8, 9))
    found = compared(longer)
    assert not found.parity.image_tokens_equal
    assert found.reasons[0] == "image tokens: 5 with 4 embeddings, in the checkpoint 4 with 4"


def test_a_turned_embedding() -> None:
    vision = trace(0).vision.copy()
    vision[2] = -vision[2]
    reason = only_reason(compared(changed(trace(0), vision=vision)))
    assert reason == "vision embeddings: cosine -1.00000, must be 0.99 at least"


@pytest.mark.parametrize("broken", [np.zeros((4, HIDDEN)), np.full((4, HIDDEN), np.nan)])
def test_embeddings_without_a_direction(broken: np.ndarray) -> None:
    found = compared(changed(trace(0), vision=broken.astype(np.float32)))
    assert found.parity.vision_cosine_min == 0
    assert "vision embeddings" in only_reason(found)


def test_embeddings_of_another_width() -> None:
    found = compared(changed(trace(0), vision=trace(0).vision[:, :8]))
    assert found.parity.vision_cosine_min == -1
    assert only_reason(found) == "vision embeddings: their number or width differs"


def test_logits_too_far_off() -> None:
    logits = trace(0).logits.copy()
    logits[1, 3] -= 2
    reason = only_reason(compared(with_logits(trace(0), logits)))
    assert reason.startswith("logits: differ by 2, which is 0.6")
    assert reason.endswith("the scheme allows 0.1 of it")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers(bad: float) -> None:
    logits = trace(0).logits.copy()
    logits[0, 3] = bad
    found = compared(changed(trace(0), logits=logits))
    assert found.parity.max_abs_logit_diff == np.inf
    assert "some are not finite" in found.reasons[0]


def test_another_vocabulary() -> None:
    assert "the vocabulary differs" in compared(changed(trace(0), logits=trace(0).logits[:, :-1])).reasons[0]


def test_the_bound_is_in_standard_deviations() -> None:
    """The same model with all logits ten times as large: the same verdict, another plain figure."""
    large = with_logits(trace(0), trace(0).logits * 10)
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (6, VOCABULARY))
    found = compared(with_logits(large, large.logits + noise), reference=large)
    assert found.reasons == ()
    assert found.parity.max_abs_logit_diff > 0.4


# --- greedy -----------------------------------------------------------------------------------------------------------


def parted(step: int, margin: float) -> tuple[Trace, Trace]:
    """A checkpoint that prefers its token at a step by a margin, and an export that takes the other one."""
    logits = trace(0).logits.copy()
    first, second = np.argsort(logits[step])[::-1][:2]
    logits[step, second] = logits[step, first] - margin
    reference = with_logits(trace(0), logits)
    other = logits.copy()
    other[step, second] = logits[step, first] + 0.001
    other[step + 1 :] = trace(7).logits[step + 1 :]  # another text follows
    return reference, with_logits(reference, other)


def test_a_near_tie_is_no_difference() -> None:
    reference, artifact = parted(2, margin=0.05)
    found = compared(artifact, reference=reference)
    assert found.reasons == ()
    assert found.parity.greedy_prefix == pytest.approx(2 / 6)
    assert found.details.greedy_prefix_clear == 1
    assert found.details.near_ties == 1


def test_a_clear_preference_that_is_missed() -> None:
    reference, artifact = parted(2, margin=1.0)
    found = compared(artifact, reference=reference)
    assert found.details.near_ties == 0
    assert found.details.greedy_prefix_clear == pytest.approx(2 / 3)
    assert "greedy tokens: 67% of the choices are equal or near ties, the scheme requires 90%" in found.reasons


def test_greedy_fails_where_no_logit_does() -> None:
    """Two logits move towards one another, each within the bound, and the token still changes."""
    reference = trace(0)
    std = np.mean([row.std() for row in reference.logits])
    bound = TOLERANCE.max_abs_logit_diff * std
    logits = reference.logits.copy()
    first, second = np.argsort(logits[0])[::-1][:2]
    logits[0, second] = logits[0, first] - 1.6 * bound
    reference = with_logits(reference, logits)
    moved = logits.copy()
    moved[0, first] -= 0.85 * bound
    moved[0, second] += 0.85 * bound
    found = compared(with_logits(reference, moved), reference=reference)
    assert only_reason(found).startswith("greedy tokens: 0%")


def test_an_answer_that_ends_too_soon() -> None:
    short = changed(trace(0), tokens=trace(0).tokens[:1], logits=trace(0).logits[:1])
    starts = [reason.partition(":")[0] for reason in compared(short, reference=trace(0)).reasons]
    assert starts == ["greedy tokens", "end of the answer"]
    assert prefix_shares([Pair(trace(0), short)], 1.0) == (1 / 6, 1 / 2, 0)


def test_an_answer_that_does_not_end() -> None:
    """However wide the bounds are: an end token that is not known is no rounding."""
    wide = Tolerance(vision_cosine_min=0.0, max_abs_logit_diff=100.0, greedy_prefix=0.0)
    ended = changed(trace(0), tokens=trace(0).tokens[:3], logits=trace(0).logits[:3])
    assert only_reason(compared(trace(0), reference=ended, tolerance=wide)).startswith("end of the answer: ")


def test_logits_after_the_parting_are_not_compared() -> None:
    reference, artifact = parted(2, margin=0.05)
    assert compared(artifact, reference=reference).parity.max_abs_logit_diff < 0.1


def test_no_answer_at_all() -> None:
    empty = changed(trace(0), tokens=(), logits=trace(0).logits[:0])
    assert len(compared(empty).reasons) >= 2


# --- the image --------------------------------------------------------------------------------------------------------


def test_an_image_that_is_not_looked_at() -> None:
    found = compared(trace(0), blank=trace(0))
    assert not found.parity.blank_image_changes
    assert only_reason(found).startswith("image: a gray one changes the logits by 0, in the checkpoint by ")


def test_an_image_that_is_hardly_looked_at() -> None:
    faint = with_logits(trace(0), trace(0).logits + 0.3 * (trace(99).logits - trace(0).logits))
    assert not compared(trace(0), blank=faint).parity.blank_image_changes


def test_a_gray_image_that_gives_no_numbers() -> None:
    nan = changed(trace(0), logits=np.full_like(trace(0).logits, np.nan))
    assert not compared(trace(0), blank=nan).parity.blank_image_changes


def test_hidden_pixels_are_unknown() -> None:
    assert compared(changed(trace(0), pixels_sha256=None)).details.pixels_equal is None
    assert compared(changed(trace(0), pixels_sha256="b" * 64)).details.pixels_equal is False


def test_every_reason_is_named_at_once() -> None:
    wrong = Trace((1, 2), "b" * 64, trace(3).vision[:1], trace(3).logits, trace(3).tokens)
    starts = [reason.partition(":")[0] for reason in compared(wrong, blank=wrong).reasons]
    assert starts == ["image tokens", "token ids", "vision embeddings", "logits", "greedy tokens", "image"]


# --- the base model ---------------------------------------------------------------------------------------------------


def blended(share: float, noise: float = 0.0) -> Trace:
    """A model on the way from base, trace(1), to aligned, trace(0); with rounding noise of a share of that way."""
    random, base, aligned = np.random.default_rng(3), trace(1), trace(0)

    def between(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        random_change = random.normal(size=before.shape)
        random_change *= noise * np.linalg.norm(after - before) / np.linalg.norm(random_change)
        return (before + share * (after - before) + random_change).astype(np.float32)

    return replace(aligned, vision=between(base.vision, aligned.vision), logits=between(base.logits, aligned.logits))


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 3.0])
def test_the_aligned_model_is_never_taken_for_the_base(noise: float) -> None:
    assert compare_with_base([trace(0)], [trace(1)], [blended(1, noise)])[1] == []


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.4])
def test_the_base_is_found_out(noise: float) -> None:
    positions, reasons = compare_with_base([trace(0)], [trace(1)], [blended(0, noise)])
    assert len(reasons) == 2
    assert all(abs(position) < 0.3 for position in positions.values())


def test_rounding_that_is_larger_than_the_change_tells_nothing() -> None:
    assert compare_with_base([trace(0)], [trace(1)], [blended(0, 1.0)])[1] == []


def test_a_part_that_training_did_not_change_tells_nothing() -> None:
    base = replace(trace(1), vision=trace(0).vision)
    positions, reasons = compare_with_base([trace(0)], [base], [base])
    assert list(positions) == ["logits"]
    assert reasons == ["adapter: the logits are the base model's, not the aligned model's"]


def test_what_is_not_finite_or_has_another_shape_is_left_to_the_other_rules() -> None:
    nan = replace(trace(0), logits=np.full_like(trace(0).logits, np.nan), vision=trace(0).vision[:2])
    assert compare_with_base([trace(0)], [trace(1)], [nan]) == ({}, [])
