"""The rules of the parity check, on made-up traces: every rule lets the right one through and stops the wrong one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mpa_edge.config.scheme import Tolerance
from mpa_edge.exporters.verify.parity import Compared, Pair, compare, compare_with_base, divergences
from mpa_edge.types import Trace

IMAGE, VOCABULARY, HIDDEN = 5, 40, 16
TOLERANCE = Tolerance(vision_cosine_min=0.99, kl_max=0.02)


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
    return compare([*pairs, Pair(gray, blank or gray)], [], tolerance, IMAGE)


def lines(found: Compared) -> list[str]:
    return [f"{reason.component}: {reason.text}" for reason in found.reasons]


def only_reason(found: Compared) -> str:
    assert len(found.reasons) == 1, found.reasons
    return lines(found)[0]


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
    assert found.parity.kl == 0
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
        "chat template: the prompt has 8 tokens, in the checkpoint 8; "
    )


def test_one_image_token_more() -> None:
    longer = changed(trace(0), input_ids=(1, 7, *[IMAGE] * 5, 8, 9))
    found = compared(longer)
    assert not found.parity.image_tokens_equal
    assert only_reason(found) == "preprocessing: 5 image tokens with 4 embeddings, in the checkpoint 4 with 4"


def test_a_turned_embedding() -> None:
    vision = trace(0).vision.copy()
    vision[2] = -vision[2]
    reason = only_reason(compared(changed(trace(0), vision=vision)))
    assert reason == "vision encoder: cosine -1.00000 with the checkpoint's embeddings, must be 0.99 at least"


@pytest.mark.parametrize("broken", [np.zeros((4, HIDDEN)), np.full((4, HIDDEN), np.nan)])
def test_embeddings_without_a_direction(broken: np.ndarray) -> None:
    found = compared(changed(trace(0), vision=broken.astype(np.float32)))
    assert found.parity.vision_cosine_min == 0
    assert only_reason(found).startswith("vision encoder: cosine 0.00000 ")


def test_embeddings_of_another_width() -> None:
    found = compared(changed(trace(0), vision=trace(0).vision[:, :8]))
    assert found.parity.vision_cosine_min == -1
    assert only_reason(found) == "vision encoder: its embeddings differ in number or width from the checkpoint's"


def test_distributions_too_far_off() -> None:
    logits = trace(0).logits.copy()
    logits[1, logits[1].argmax()] -= 2
    reason = only_reason(compared(with_logits(trace(0), logits)))
    assert reason.startswith("decoder: its next-token distributions are KL 0.")
    assert reason.endswith(" from the checkpoint's on 6 tokens, the scheme allows 0.02")


def test_the_divergence_is_that_of_the_textbook() -> None:
    """KL of two distributions of two outcomes each, and a constant added to all logits, which changes none."""
    p, q = np.array([[0.9, 0.1]]), np.array([[0.5, 0.5]])
    wanted = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    assert divergences(np.log(p), np.log(q) + 7) == pytest.approx([wanted])
    assert divergences(np.log(np.tile(p, (3, 1))), np.log(q)) == pytest.approx([wanted])  # fewer rows
    assert divergences(np.log(p), np.log(np.full((1, 3), 1 / 3))).tolist() == [np.inf]


def test_a_text_is_told_from_what_the_answers_hide() -> None:
    """The answers are the same to the last bit, the text is not."""
    pairs = [Pair(trace(0), trace(0)), Pair(trace(99), trace(99))]
    text = np.random.default_rng(2).normal(0, 3, (50, VOCABULARY))
    near, far = (text + np.random.default_rng(3).normal(0, sigma, text.shape) for sigma in (0.1, 1.0))
    assert compare(pairs, [(text, near)], TOLERANCE, IMAGE).reasons == ()
    found = compare(pairs, [(text, far)], TOLERANCE, IMAGE)
    assert found.details.steps == 56
    assert "on 56 tokens, the scheme allows 0.02" in only_reason(found)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers(bad: float) -> None:
    logits = trace(0).logits.copy()
    logits[0, 3] = bad
    found = compared(changed(trace(0), logits=logits))
    assert found.parity.max_abs_logit_diff == np.inf
    assert only_reason(found) == "decoder: some logits are not finite, or the vocabulary differs"


def test_another_vocabulary() -> None:
    assert "the vocabulary differs" in only_reason(compared(changed(trace(0), logits=trace(0).logits[:, :-1])))


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


def test_a_clear_preference_that_is_missed() -> None:
    reference, artifact = parted(2, margin=3.0)
    assert only_reason(compared(artifact, reference=reference)).startswith("decoder: its next-token distributions are")


def test_an_answer_that_ends_too_soon() -> None:
    short = changed(trace(0), tokens=trace(0).tokens[:1], logits=trace(0).logits[:1])
    found = compared(short, reference=trace(0))
    assert (
        only_reason(found) == "decoder: after the same tokens, one of the two answers continues and the other one stops"
    )
    assert found.parity.greedy_prefix == 1 / 6


def test_an_answer_that_does_not_end() -> None:
    """However wide the bounds are: an end token that is not known is no rounding."""
    wide = Tolerance(vision_cosine_min=0.0, kl_max=100.0)
    ended = changed(trace(0), tokens=trace(0).tokens[:3], logits=trace(0).logits[:3])
    assert only_reason(compared(trace(0), reference=ended, tolerance=wide)).startswith("decoder: after the same")


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
    assert only_reason(found).startswith("decoder: a gray image changes the logits by 0, in the checkpoint by ")


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
    reasons = compared(wrong, blank=wrong).reasons
    assert [reason.component for reason in reasons] == ["preprocessing", "vision encoder", "decoder", "vision encoder"]
    assert reasons[2].text.endswith("perhaps because of the image embeddings")


# --- the base model ---------------------------------------------------------------------------------------------------


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def sides(share: float, noise: float, shape: tuple[int, int], change: float = 0.3) -> Arrays:
    """(aligned, base, export): an export on the way from base to aligned, and noise in multiples of that way."""
    random = np.random.default_rng(3)
    base, way = random.normal(0, 3, shape), random.normal(0, change, shape)
    return base + way, base, base + share * way + random.normal(0, noise * change, shape)


def judged(share: float, noise: float, change: float = 0.3) -> tuple[dict[str, float], list[str]]:
    found, reasons = compare_with_base(
        sides(share, noise, (64, HIDDEN)), sides(share, noise, (256, VOCABULARY), change)
    )
    return found, [reason.component for reason in reasons]


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("change", [0.001, 0.03, 0.3])
def test_the_aligned_model_is_never_taken_for_the_base(noise: float, change: float) -> None:
    assert judged(1, noise, change)[1] == []


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.4])
def test_the_base_is_found_out(noise: float) -> None:
    found, components = judged(0, noise)
    assert components == ["vision encoder", "decoder"]
    assert abs(found["vision_toward_aligned"]) < 0.3
    assert found["kl_base"] < found["kl_aligned"]


@pytest.mark.parametrize("noise", [0.6, 1.0])
def test_rounding_that_is_as_large_as_the_change_does_not_hide_the_base_in_a_text(noise: float) -> None:
    assert judged(0, noise)[1] == ["decoder"]


@pytest.mark.parametrize("toward_base", [0.5, 2.0, 4.0])
def test_rounding_with_a_direction_of_its_own_is_not_taken_for_the_base(toward_base: float) -> None:
    """A weak model is rounded to flatter distributions, which lie on the side of the base or beyond it."""
    aligned, base, _ = sides(1, 0, (256, VOCABULARY))
    flatter = aligned + toward_base * (base - aligned) + 3.0 * np.random.default_rng(4).normal(0, 0.3, base.shape)
    same = np.ones((4, HIDDEN))
    found, reasons = compare_with_base((same, same, same), (aligned, base, flatter))
    assert found["kl_base"] < found["kl_aligned"] or toward_base == 0.5
    assert reasons == []


def test_a_part_that_training_did_not_change_tells_nothing() -> None:
    same = np.ones((4, HIDDEN))
    found, reasons = compare_with_base((same, same, same), sides(0, 0, (256, VOCABULARY)))
    assert list(found) == ["kl_aligned", "kl_base"]
    assert [reason.component for reason in reasons] == ["decoder"]
    texts = sides(0, 1, (256, VOCABULARY))
    assert compare_with_base((same, same, same), (texts[0], texts[0], texts[2]))[1] == []


def test_what_is_not_finite_or_has_another_shape_is_left_to_the_other_rules() -> None:
    aligned, base, export = sides(0, 0, (64, HIDDEN))
    texts = sides(0, 0, (8, VOCABULARY))
    nan = (texts[0], texts[1], np.full_like(texts[2], np.nan))
    assert compare_with_base((aligned, base, export[:2]), nan) == ({}, [])
