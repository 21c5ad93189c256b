"""An ONNX folder against the checkpoint that it came from: same prompt, same numbers, same answers, without torch."""

from __future__ import annotations

import functools
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mpa_edge.errors import MpaError
from mpa_edge.exporters.verify.probes import drawn
from mpa_edge.exporters.verify.reference import Checkpoint, ProbeTrace
from mpa_edge.types import Reply, Request, Trace
from mpa_edge.vlm.onnxruntime.model import OnnxVLM
from tests.families import zoo
from tests.vlm import exported

pytestmark = pytest.mark.slow

EVERY = ("student", *zoo.MODEL_TYPES, "llava:clip", "llava:clip:full")
WIDE, TALL, MIDDLE = drawn(256, 64, seed=1), drawn(70, 150, seed=2), drawn(200, 180, seed=3)
ASKED = (
    Request(WIDE, "How many red shapes are there, and is the largest one left of 3 o'clock?", 16),
    Request(TALL, " What is it?\n", 16),
    Request(MIDDLE, "x", 10),
)
# random weights make the last bits of a sum grow from layer to layer: logits have a standard deviation of 2.5
LOGIT_TOLERANCE = {"student": 1e-4}


@functools.cache
def model(which: str) -> OnnxVLM:
    return OnnxVLM(exported.onnx_folder(which), name=which, threads=1)


@functools.cache
def truth(which: str) -> tuple[ProbeTrace, ...]:
    return tuple(Checkpoint(exported.checkpoint(which), {}, 1).trace(ASKED))


def same(found: Sequence[Trace], expected: Sequence[Trace], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.input_ids == other.input_ids
        assert one.pixels_sha256 == other.pixels_sha256
        assert one.vision.shape == other.vision.shape
        assert one.tokens == other.tokens
        assert one.logits.shape == (len(one.tokens), other.logits.shape[1])
        np.testing.assert_allclose(one.logits, other.logits, atol=tolerance, rtol=0)
        cosine = (one.vision * other.vision).sum(1) / np.linalg.norm(one.vision, axis=1)
        np.testing.assert_allclose(cosine, np.linalg.norm(other.vision, axis=1), rtol=1e-5)


@pytest.mark.parametrize("which", EVERY)
def test_a_left_padded_batch_is_traced_as_the_checkpoint_does_it(which: str) -> None:
    same(model(which).trace(ASKED), [seen.trace for seen in truth(which)], LOGIT_TOLERANCE.get(which, 1e-3))


@pytest.mark.parametrize("which", EVERY)
def test_answers_are_the_checkpoints_greedy_tokens(which: str) -> None:
    ends = model(which).artifact.tokens.ends
    for reply, seen in zip(model(which).answer(ASKED), truth(which), strict=True):
        tokens = seen.trace.tokens
        assert reply.n_tokens == len(tokens)
        assert reply.text == model(which).tokenizer.decode(tokens)
        assert reply.finish_reason == ("stop" if tokens[-1] in ends else "length")


@pytest.mark.parametrize("which", ["idefics3", "qwen2_5_vl", "llava", "internvl"])
def test_the_checkpoints_pixels_can_take_the_place_of_our_own(which: str) -> None:
    given = [seen.pixels for seen in truth(which)]
    same(model(which).trace(ASKED, given), [seen.trace for seen in truth(which)], 1e-3)
    # and they are really used: another image of the same size is another answer
    other = [{name: -array if array.dtype.kind == "f" else array for name, array in given[0].items()}, *given[1:]]
    negative, *rest = model(which).trace(ASKED, other)
    assert negative.pixels_sha256 != truth(which)[0].trace.pixels_sha256
    assert np.abs(negative.logits[0] - truth(which)[0].trace.logits[0]).max() > 0.1
    same(rest, [seen.trace for seen in truth(which)][1:], 1e-3)


def test_pixels_of_an_image_with_another_number_of_tokens_are_refused() -> None:
    pixels = [seen.pixels for seen in truth("idefics3")]
    with pytest.raises(MpaError, match=r"gives \d+ x 256 for \d+ x 256 numbers: rerun mpa-edge export"):
        model("idefics3").trace(ASKED, pixels[::-1])


def test_no_request_is_no_trace_and_no_reply() -> None:
    assert model("student").trace([]) == []
    assert model("student").answer([]) == []


# --- neighbours -------------------------------------------------------------------------------------------------------


def test_a_recurrent_state_is_exact_over_a_long_prompt() -> None:
    """transformers computes it in chunks of 64 tokens, ONNX Runtime token by token."""
    asked = [Request(WIDE, "Which of the bars is the highest one? " * 12, 6)]
    expected = [seen.trace for seen in Checkpoint(exported.checkpoint("qwen3_5"), {}, 1).trace(asked)]
    assert len(expected[0].input_ids) > 3 * 64
    same(model("qwen3_5").trace(asked), expected, 1e-3)


QUESTIONS = ("What is the highest value?", "What is the lowest value?", "Which bar is it?", "What is the highest?")


def texts(replies: Sequence[Reply]) -> list[str]:
    return [reply.text for reply in replies]


@pytest.mark.parametrize("which", ["student", "qwen2_vl", "qwen3_5", "internvl", "lfm2_vl", "gemma4"])
def test_questions_about_one_image_share_its_features_and_are_answered_as_alone(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Request(image, question, 12) for question in QUESTIONS for image in (WIDE, TALL)]
    alone = [model(which).answer([request])[0].text for request in asked]
    seen, encode = [], model(which).vision.encode
    monkeypatch.setattr(model(which).vision, "encode", lambda pixels: seen.append(1) or encode(pixels))
    together = model(which).answer(asked)
    assert texts(together) == alone
    assert len(set(alone)) > 2
    assert len(seen) == 2
    spent = [reply.timing.vision_s for reply in together]
    assert min(spent[:2]) > statistics.median(spent[2:])


def test_the_decoder_sees_the_image_tokens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, step = [], model("idefics3").decoder.step
    counted = lambda embeds, *rest: lengths.append(embeds.shape[1]) or step(embeds, *rest)  # noqa: E731
    monkeypatch.setattr(model("idefics3").decoder, "step", counted)
    model("idefics3").answer([Request(MIDDLE, question, 1) for question in QUESTIONS])
    assert lengths[0] > 200
    assert max(lengths[1:]) < 60
    lengths.clear()
    model("idefics3").answer([Request(MIDDLE, QUESTIONS[0], 1), Request(MIDDLE.copy(), QUESTIONS[0], 1)])
    assert min(lengths) > 200


@functools.cache
def dynamic_int8(tmp: Path) -> OnnxVLM:
    """The student with a decoder whose activations' ranges are found anew at each run."""
    from onnxruntime.quantization import quantize_dynamic

    folder = Path(shutil.copytree(exported.onnx_folder("student"), tmp / "int8"))
    name = model("student").artifact.files["decoder"]
    quantize_dynamic(exported.onnx_folder("student") / name, folder / name)
    return OnnxVLM(folder, name="int8", threads=1)


def test_with_dynamic_ranges_an_answer_does_not_depend_on_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    int8 = dynamic_int8(tmp_path)
    logits, step = [], int8.decoder.step

    def noted(*arguments: object) -> object:
        found = step(*arguments)
        logits.append(found[0])
        return found

    monkeypatch.setattr(int8.decoder, "step", noted)
    asked = [Request(WIDE, question, 4) for question in QUESTIONS]
    together = int8.answer(asked)
    first, logits = np.concatenate(logits), []
    alone = [int8.answer([request])[0] for request in asked]
    assert texts(together) == texts(alone)
    np.testing.assert_array_equal(first, np.concatenate(logits))
    assert model("student").decoder.rows_are_independent
    assert not int8.decoder.rows_are_independent


@pytest.mark.parametrize("which", ["idefics3", "internvl"])
def test_tiles_go_through_the_encoder_one_by_one_and_come_out_as_from_one_run(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, pixels = model(which).vision, truth(which)[2].pixels
    at_once = encoder.session.run(None, {name: pixels[name] for name in encoder.inputs})[0]
    sizes, run = [], encoder.run
    monkeypatch.setattr(encoder, "run", lambda feeds: sizes.append(feeds["pixel_values"].shape[:-3]) or run(feeds))
    found = encoder.encode(pixels)
    np.testing.assert_allclose(found, at_once.reshape(found.shape), atol=1e-3 * found.std())
    assert set(sizes) == {(1, 1) if which == "idefics3" else (1,)}
    assert len(sizes) > 2


# --- sampling and limits ----------------------------------------------------------------------------------------------


def test_sampling_depends_on_the_seed_alone() -> None:
    asked = [Request(WIDE, "What is it?", 12, 1.5, 0.95, seed) for seed in (1, 2, 1, 3)]
    found = texts(model("idefics3").answer(asked))
    assert found[0] == found[2]
    assert len(set(found)) == 3
    assert texts(model("idefics3").answer(asked[::-1])) == found[::-1]
    greedy = model("idefics3").answer([Request(WIDE, "What is it?", 12)])
    cold = model("idefics3").answer([Request(WIDE, "What is it?", 12, 1e-4, 1.0, 7)])
    assert texts(cold) == texts(greedy) != found[:1]


def test_an_answer_ends_at_its_limit() -> None:
    asked = [Request(WIDE, "What is it?", n) for n in (1, 2, 7)]
    replies = model("idefics3").answer(asked)
    assert [(reply.n_tokens, reply.finish_reason) for reply in replies] == [(1, "length"), (2, "length"), (7, "length")]
    assert [len(trace.tokens) for trace in model("idefics3").trace(asked)] == [1, 2, 7]


def narrow(context_tokens: int, tmp_path: Path) -> OnnxVLM:
    folder = Path(shutil.copytree(exported.onnx_folder("idefics3"), tmp_path / str(context_tokens)))
    exported.change(folder, context_tokens=context_tokens)
    return OnnxVLM(folder, name="narrow", threads=1)


def test_a_prompt_and_its_answer_stay_within_the_context(tmp_path: Path) -> None:
    request = Request(WIDE, "What is it?", 16)
    n = len(model("idefics3").trace([request])[0].input_ids)
    (reply,) = narrow(n + 5, tmp_path).answer([request])
    assert (reply.n_tokens, reply.finish_reason) == (5, "length")
    with pytest.raises(MpaError, match=f"the prompt has {n} tokens, this export takes {n}: ask a shorter question"):
        narrow(n, tmp_path).answer([request])


def test_special_tokens_of_a_user_are_text_of_nobody() -> None:
    asked = [Request(WIDE, text, 8) for text in ("What <image>is it?<end_of_utterance>", "What is it?")]
    first, second = model("student").trace(asked)
    assert first.input_ids == second.input_ids
    assert first.tokens == second.tokens


def test_the_parts_of_the_time_add_up() -> None:
    for reply in model("idefics3").answer(ASKED):
        time_ = reply.timing
        parts = [time_.preprocess_s, time_.vision_s, time_.prefill_s]
        assert time_.ttft_s == pytest.approx(sum(parts))
        assert time_.total_s == pytest.approx(time_.ttft_s + time_.decode_s)
        assert min(*parts, time_.decode_s) > 0


# --- speed ------------------------------------------------------------------------------------------------------------


def bare_seconds(vlm_: OnnxVLM, trace: Trace, n: int) -> float:
    """Decode steps on the same sessions with nothing around them."""
    decoder, embed = vlm_.decoder.session, vlm_.embed.session
    names = [name.replace("present.", "past_key_values.") for name in vlm_.decoder.outputs[1:]]
    cache = {name: np.zeros((1, *vlm_.decoder.inputs[name].shape[1:2], 0, 64), np.float32) for name in names}
    feeds = {"attention_mask": np.ones((1, len(trace.input_ids)), np.int64), **vlm_.decoder.constants}
    feeds["position_ids"] = np.arange(len(trace.input_ids))[None]
    feeds["inputs_embeds"] = embed.run(None, {"input_ids": np.array([trace.input_ids])})[0]
    logits, *cache = decoder.run(None, feeds | cache)
    start = time.perf_counter()
    for i in range(len(trace.input_ids), len(trace.input_ids) + n):
        token = int(logits[0, -1].argmax())
        feeds["inputs_embeds"] = embed.run(None, {"input_ids": np.array([[token]])})[0]
        feeds["attention_mask"] = np.ones((1, i + 1), np.int64)
        feeds["position_ids"] = np.array([[i]])
        logits, *cache = decoder.run(None, feeds | dict(zip(names, cache, strict=True)))
    return time.perf_counter() - start


def test_our_loop_costs_little_over_a_bare_one() -> None:
    request, pairs = Request(WIDE, "What is it?", 51), []
    (trace,) = model("idefics3").trace([request])
    for _ in range(20):  # in turns and short, so that each has a quiet moment
        (reply,) = model("idefics3").answer([request])
        pairs.append((reply.timing.decode_s / (reply.n_tokens - 1), bare_seconds(model("idefics3"), trace, 50) / 50))
    ours, bare = (min(column) for column in zip(*pairs, strict=True))
    assert ours < 1.25 * bare, f"{ours * 1e6:.0f} us a token against {bare * 1e6:.0f}"
