"""A GGUF pair against the checkpoint that it came from, in the real llama.cpp: same prompt, same answers."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpa_edge.artifact import read_artifact, write_artifact
from mpa_edge.errors import MpaError
from mpa_edge.exporters.verify.probes import drawn
from mpa_edge.exporters.verify.reference import Checkpoint, ProbeTrace
from mpa_edge.nursery.render import pictures
from mpa_edge.types import Request
from mpa_edge.vlm import load
from mpa_edge.vlm.llama_cpp.language import COMPUTED_TOKENS
from mpa_edge.vlm.llama_cpp.model import LlamaCppVLM
from mpa_edge.vlm.llama_cpp.server import READ_BOTH_WAYS, LlamaServerVLM
from mpa_edge.vlm.llama_cpp.vision import images_for_mtmd
from mpa_edge.vlm.pixels import prepare
from tests.families import zoo
from tests.vlm.exported import checkpoint
from tests.vlm.llama_exported import gguf_folder
from tests.vlm.llama_traces import cosines, same_way

pytestmark = [pytest.mark.peer, pytest.mark.slow]

EVERY = ("student", *zoo.MODEL_TYPES)
WIDE, TALL, MIDDLE, THIN = (
    drawn(256, 64, seed=1),
    drawn(70, 150, seed=2),
    drawn(200, 180, seed=3),
    drawn(30, 400, seed=4),
)
ASKED = (
    Request(WIDE, "How many red shapes are there, and is the largest one left of 3 o'clock?", 12),
    Request(TALL, " What is it?\n\n1234", 12),
    Request(MIDDLE, "x", 10),
    Request(THIN, "ünïcode 中文 €?", 10),
)
# llama.cpp rounds activations to 16 bits in front of 16-bit weights; random weights make that grow from layer to layer.
# Idefics3: Pillow 13 scales a tall image's height first, llama.cpp its width, so that the overview differs by 1 bit
LOGIT_TOLERANCE = {"student": 0.01, "idefics3": 0.2, "smolvlm": 0.2}


@functools.cache
def model(which: str, language: str = "f16") -> LlamaCppVLM:
    return LlamaCppVLM(gguf_folder(which, language), name=which, threads=1)


@functools.cache
def truth(which: str) -> tuple[ProbeTrace, ...]:
    seen = Checkpoint(checkpoint(which), {}, 1)
    return tuple(seen.trace([request])[0] for request in ASKED)


@pytest.fixture
def chart() -> Image.Image:
    return next(pictures(1, 99, "target")).image


@pytest.mark.parametrize("which", EVERY)
def test_a_pair_is_the_checkpoint_that_it_came_from(which: str) -> None:
    for one, seen in zip(model(which).trace(ASKED), truth(which), strict=True):
        other = seen.trace
        assert one.input_ids == other.input_ids
        assert one.pixels_sha256 is None
        assert one.vision.shape == other.vision.shape
        assert cosines(one, other).min() > 0.9995
        assert np.median(cosines(one, other)) > 0.999997  # flash attention keeps keys and values in 16 bits
        same_way(one, other, LOGIT_TOLERANCE.get(which, 0.06))


def test_a_recurrent_state_is_exact_over_a_long_prompt() -> None:
    """More tokens than llama.cpp computes together."""
    asked = Request(WIDE, "Which of the bars is the highest one? " * 24, 6)
    [seen] = Checkpoint(checkpoint("qwen3_5"), {}, 1).trace([asked])
    assert len(seen.trace.input_ids) > COMPUTED_TOKENS
    same_way(model("qwen3_5").trace([asked])[0], seen.trace, 0.06)


def test_the_built_in_student_says_what_transformers_says(chart: Image.Image) -> None:
    questions = ("How many bars are there?", "Which bar is highest?", "What is the value of the purple bar?")
    asked = [Request(picture.image, one, 12) for picture in pictures(8, 99, "target") for one in questions]
    in_torch = load("nursery:student", name="student", device="cpu", threads=1)
    expected = [reply.text for reply in in_torch.answer(asked)]
    assert [reply.text for reply in model("student").answer(asked)] == expected
    assert len(set(expected)) > 6
    # 8 bits: nearly always
    found = [reply.text for reply in model("student", "q8_0").answer(asked)]
    assert sum(one == other for one, other in zip(found, expected, strict=True)) >= 22


@pytest.mark.parametrize("which", EVERY)
def test_answers_are_what_the_trace_says(which: str) -> None:
    artifact = model(which).artifact
    for reply, trace in zip(model(which).answer(ASKED), model(which).trace(ASKED), strict=True):
        assert reply.n_tokens == len(trace.tokens)
        assert reply.finish_reason == ("stop" if trace.tokens[-1] in artifact.tokens.ends else "length")
        assert not any(token in reply.text for token in artifact.tokens.special)


def test_the_image_matters(chart: Image.Image) -> None:
    blank = Image.new("RGB", chart.size, (127, 127, 127))
    seen, unseen = model("student").trace([Request(image, "How many bars are there?", 4) for image in (chart, blank)])
    assert np.abs(seen.logits[0] - unseen.logits[0]).max() > 1


# --- neighbours -------------------------------------------------------------------------------------------------------

QUESTIONS = ("What is the highest value?", "What is the lowest value?", "Which bar is it?", "What is the highest?")


@pytest.mark.parametrize("which", EVERY)
def test_only_programs_that_read_an_image_in_both_directions_are_refused(which: str) -> None:
    vision = model(which).vision
    assert vision.mtmd.mtmd_decode_use_non_causal(vision.context, None) == (which in READ_BOTH_WAYS)
    if which in READ_BOTH_WAYS:
        with pytest.raises(MpaError, match="llama-server reads an image of gemma4 in both directions, .*: use an onnx"):
            LlamaServerVLM("http://127.0.0.1:1", model(which).artifact, name=which, timeout_s=1)


@pytest.mark.parametrize("which", ["student", "qwen2_vl", "qwen3_5", "internvl", "lfm2_vl", "gemma4"])
def test_questions_about_one_image_share_its_prefix_and_are_answered_as_alone(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Request(image, question, 12) for image in (WIDE, TALL) for question in QUESTIONS]
    alone = [model(which).answer([request])[0].text for request in asked]
    looked, look = [], model(which).look
    monkeypatch.setattr(model(which), "look", lambda image, pixels=None: looked.append(1) or look(image, pixels))
    together = model(which).answer(asked)
    assert [reply.text for reply in together] == alone
    assert len(set(alone)) > 2
    assert len(looked) == 2
    assert [reply.timing.vision_s == 0 for reply in together] == [False, True, True, True] * 2


def test_an_image_that_was_drawn_into_is_seen_anew(chart: Image.Image) -> None:
    asked = [Request(chart, "How many bars are there?", 8)]
    before = model("student").answer(asked)[0].text
    chart.paste((127, 127, 127), (0, 0, *chart.size))
    assert model("student").answer(asked)[0].timing.vision_s > 0
    assert before == "2"


def test_the_order_and_a_trace_in_between_do_not_matter() -> None:
    asked = [Request(image, question, 8) for question in QUESTIONS for image in (WIDE, TALL, WIDE)]
    forwards = [reply.text for reply in model("idefics3").answer(asked)]
    model("idefics3").trace(asked[:1])
    assert [reply.text for reply in model("idefics3").answer(asked[::-1])][::-1] == forwards


# --- sampling, limits, times ------------------------------------------------------------------------------------------


def test_a_seed_decides_a_reply_and_another_seed_gives_another() -> None:
    def said(seed: int, temperature: float = 1.0) -> str:
        return model("idefics3").answer([Request(WIDE, "What?", 8, temperature=temperature, seed=seed)])[0].text

    assert said(1) == said(1)
    assert len({said(seed) for seed in range(6)}) > 3
    assert len({said(seed, 0.0) for seed in range(3)}) == 1


def test_an_answer_ends_at_its_limit(chart: Image.Image) -> None:
    for limit in (1, 2):
        reply = model("student").answer([Request(chart, "How many bars are there?", limit)])[0]
        assert (reply.n_tokens, reply.finish_reason) == (limit, "length")


def test_an_answer_ends_with_the_context_and_a_longer_prompt_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gguf_folder("idefics3"), tmp_path / "short"))
    n = len(model("idefics3").trace([Request(WIDE, "What?", 1)])[0].input_ids)
    write_artifact(folder, read_artifact(folder).model_copy(update={"context_tokens": n + 3}))
    short = LlamaCppVLM(folder, name="short", threads=1)
    reply = short.answer([Request(WIDE, "What?", 12)])[0]
    assert (reply.n_tokens, reply.finish_reason) == (3, "length")
    with pytest.raises(
        MpaError, match=rf"the prompt has \d+ tokens, this export takes {n + 3}: ask a shorter question"
    ):
        short.answer([Request(WIDE, "What is it all about?" * 3, 4)])
    # and the next one is none the worse for it
    assert short.answer([Request(WIDE, "What?", 12)])[0].text == reply.text
    short.close()


def test_times_add_up() -> None:
    timing = model("idefics3").answer([Request(MIDDLE, "What?", 8)])[0].timing
    parts = (timing.preprocess_s, timing.vision_s, timing.prefill_s)
    assert min(*parts, timing.decode_s) > 0
    assert timing.ttft_s == pytest.approx(sum(parts), rel=0.05)
    assert timing.total_s == pytest.approx(timing.ttft_s + timing.decode_s)


def test_special_tokens_of_the_user_are_words(chart: Image.Image) -> None:
    clean, dirty = "How many bars are there?", "How many<image> bars<end_of_utterance> are <row_1_col_1>there?"
    traces = model("student").trace([Request(chart, text, 4) for text in (clean, dirty.replace("<row_1_col_1>", ""))])
    assert traces[0].input_ids == traces[1].input_ids


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_pixels_are_refused() -> None:
    given = [{"pixel_values": np.zeros((1, 3, 64, 64), np.float32)}]
    with pytest.raises(MpaError, match="takes an image, not pixels"):
        model("student").trace([Request(WIDE, "x", 1)], given)


@pytest.mark.parametrize("component", ["language", "mmproj"])
@pytest.mark.parametrize("damage", ["cut", "text", "other"])
def test_damaged_files_are_one_line(component: str, damage: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = Path(shutil.copytree(gguf_folder("student"), tmp_path / "damaged"))
    files = read_artifact(folder).files
    path = folder / files[component]
    content = {
        "cut": path.read_bytes()[: path.stat().st_size // 2],
        "text": b"no model at all" * 100,
        "other": (folder / files["mmproj" if component == "language" else "language"]).read_bytes(),
    }[damage]
    path.write_bytes(content)
    capfd.readouterr()
    with pytest.raises(MpaError) as caught:
        LlamaCppVLM(folder, name="x", threads=1)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("rerun mpa-edge export")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_component_that_is_not_named_is_missed(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gguf_folder("student"), tmp_path / "half"))
    artifact = read_artifact(folder)
    write_artifact(folder, artifact.model_copy(update={"files": {"language": artifact.files["language"]}}))
    with pytest.raises(MpaError, match="names no mmproj file: rerun mpa-edge export"):
        LlamaCppVLM(folder, name="x", threads=1)


def test_it_can_be_closed_twice() -> None:
    one = LlamaCppVLM(gguf_folder("student"), name="x", threads=1)
    one.close()
    one.close()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MpaError, match=r"llama-cpp-python is missing: pip install 'mpa-edge\[gguf\]'"):
        LlamaCppVLM(gguf_folder("student"), name="x")


WITHOUT = """
import sys
for name in ("torch", "transformers", "tokenizers", "onnxruntime"):
    sys.modules[name] = None
from PIL import Image
from mpa_edge.types import Request
from mpa_edge.vlm import load
reply = load(sys.argv[1], name="x", threads=1).answer([Request(Image.open(sys.argv[2]).convert("RGB"), sys.argv[3], 8)])
print(reply[0].text)
"""


def test_it_needs_neither_torch_nor_transformers_nor_tokenizers(chart: Image.Image, tmp_path: Path) -> None:
    chart.save(tmp_path / "chart.png")
    command = [sys.executable, "-c", WITHOUT, str(gguf_folder("student")), str(tmp_path / "chart.png")]
    done = subprocess.run(
        [*command, "How many bars are there?"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)


# --- InternVL: tiles are cut here -------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [WIDE, TALL, MIDDLE, drawn(40, 40, seed=5)], ids=["wide", "tall", "middle", "small"])
def test_internvl_tiles_are_those_of_its_image_processor(image: Image.Image) -> None:
    config = model("internvl").artifact.image
    tiles = images_for_mtmd(config, image)
    expected = prepare(config, image).pixels["pixel_values"]
    assert len(tiles) == len(expected)
    for tile, values in zip(tiles, expected, strict=True):
        levels = np.asarray(tile, np.float32).transpose(2, 0, 1) / 255
        mean, std = (np.array(config[key], np.float32)[:, None, None] for key in ("image_mean", "image_std"))
        np.testing.assert_allclose((levels - mean) / std, values, atol=1e-6)
