"""An ONNX vision encoder in front of a GGUF language model, both real, against the checkpoint that they came from."""

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
from mpa_edge.vlm.hybrid import HybridVLM
from tests.families import zoo
from tests.vlm.exported import checkpoint
from tests.vlm.llama_exported import gguf_folder, hybrid_folder
from tests.vlm.llama_traces import cosines, same_way

pytestmark = [pytest.mark.peer, pytest.mark.slow]

EVERY = ("student", *zoo.MODEL_TYPES, "llava:clip")
WIDE, TALL, MIDDLE = drawn(256, 64, seed=1), drawn(70, 150, seed=2), drawn(200, 180, seed=3)
ASKED = (
    Request(WIDE, "How many red shapes are there, and is the largest one left of 3 o'clock?", 12),
    Request(TALL, " What is it?\n\n1234", 12),
    Request(MIDDLE, "ünïcode 中文 €?", 10),
)
LOGIT_TOLERANCE = {"student": 0.01}


@functools.cache
def model(which: str) -> HybridVLM:
    return HybridVLM(hybrid_folder(which), name=which, threads=1)


@functools.cache
def truth(which: str) -> tuple[ProbeTrace, ...]:
    seen = Checkpoint(checkpoint(which), {}, 1)
    return tuple(seen.trace([request])[0] for request in ASKED)


@pytest.mark.parametrize("which", EVERY)
def test_both_halves_together_are_the_checkpoint(which: str) -> None:
    for one, seen in zip(model(which).trace(ASKED), truth(which), strict=True):
        assert one.input_ids == seen.trace.input_ids
        assert one.pixels_sha256 == seen.trace.pixels_sha256
        assert one.vision.shape == seen.trace.vision.shape
        assert cosines(one, seen.trace).min() > 0.99999
        same_way(one, seen.trace, LOGIT_TOLERANCE.get(which, 0.06))


@pytest.mark.parametrize("which", ["idefics3", "qwen2_5_vl", "internvl"])
def test_the_checkpoints_pixels_can_take_the_place_of_our_own(which: str) -> None:
    given = [seen.pixels for seen in truth(which)]
    own, theirs = model(which).trace(ASKED), model(which).trace(ASKED, given)
    assert [one.tokens for one in own] == [one.tokens for one in theirs]
    negative = {name: -array if array.dtype.kind == "f" else array for name, array in given[0].items()}
    other = model(which).trace(ASKED[:1], [negative])[0]
    assert other.pixels_sha256 != own[0].pixels_sha256
    assert np.abs(other.logits[0] - own[0].logits[0]).max() > 0.1


def test_pixels_of_an_image_with_another_number_of_tokens_are_refused() -> None:
    given = [seen.pixels for seen in truth("idefics3")]
    with pytest.raises(MpaError, match=r"gives embeddings of shape .* for \d+ tokens of 256: rerun mpa-edge export"):
        model("idefics3").trace(ASKED, given[::-1])


@pytest.mark.parametrize("which", ["student", "qwen2_vl"])
def test_questions_about_one_image_share_its_prefix_and_are_answered_as_alone(which: str) -> None:
    questions = ("What is the highest value?", "What is the lowest value?", "Which bar is it?")
    asked = [Request(image, question, 12) for image in (WIDE, TALL) for question in questions]
    alone = [model(which).answer([request])[0].text for request in asked]
    together = model(which).answer(asked)
    assert [reply.text for reply in together] == alone
    assert [reply.timing.vision_s == 0 for reply in together] == [False, True, True] * 2


def test_the_built_in_student_says_what_transformers_says_with_eight_and_four_bits() -> None:
    questions = ("How many bars are there?", "Which bar is highest?", "What is the value of the purple bar?")
    asked = [Request(picture.image, one, 12) for picture in pictures(8, 99, "target") for one in questions]
    in_torch = load("nursery:student", name="student", device="cpu", threads=1)
    expected = [reply.text for reply in in_torch.answer(asked)]
    assert [reply.text for reply in model("student").answer(asked)] == expected
    for language, wanted in (("q8_0", 20), ("q4_0", 17)):
        vlm = load(str(hybrid_folder("student", language, "int8")), name="int8", threads=1)
        assert isinstance(vlm, HybridVLM)
        found = [reply.text for reply in vlm.answer(asked)]
        assert sum(one == other for one, other in zip(found, expected, strict=True)) >= wanted
        vlm.close()


def test_a_damaged_vision_encoder_is_one_line(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(hybrid_folder("student"), tmp_path / "damaged"))
    path = folder / read_artifact(folder).files["vision"]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(MpaError, match=r"^cannot load .*vision_encoder.*rerun mpa-edge export$"):
        HybridVLM(folder, name="x", threads=1)


def test_a_folder_of_another_format_is_refused() -> None:
    with pytest.raises(MpaError, match="names no vision file: rerun mpa-edge export"):
        HybridVLM(gguf_folder("student"), name="x", threads=1)


def test_a_language_model_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(hybrid_folder("qwen2_vl"), tmp_path / "mixed"))
    other = hybrid_folder("student")
    artifact = read_artifact(folder)
    shutil.copy(other / read_artifact(other).files["language"], folder / artifact.files["language"])
    write_artifact(folder, artifact)
    mixed = HybridVLM(folder, name="x", threads=1)
    with pytest.raises(MpaError, match="the vision encoder gives"):
        mixed.answer([Request(WIDE, "x", 2)])
    mixed.close()


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "mpa_edge.vlm.onnxruntime.sessions", raising=False)
    with pytest.raises(MpaError, match=r"onnxruntime is missing: pip install 'mpa-edge\[onnx\]'"):
        HybridVLM(hybrid_folder("student"), name="x", threads=1)


WITHOUT = """
import sys
for name in ("torch", "transformers", "tokenizers"):
    sys.modules[name] = None
from PIL import Image
from mpa_edge.types import Request
from mpa_edge.vlm import load
reply = load(sys.argv[1], name="x", threads=1).answer([Request(Image.open(sys.argv[2]).convert("RGB"), sys.argv[3], 8)])
print(reply[0].text)
"""


def test_it_needs_neither_torch_nor_transformers_nor_tokenizers(tmp_path: Path) -> None:
    chart: Image.Image = next(iter(pictures(1, 99, "target"))).image
    chart.save(tmp_path / "chart.png")
    command = [sys.executable, "-c", WITHOUT, str(hybrid_folder("student")), str(tmp_path / "chart.png")]
    done = subprocess.run(
        [*command, "How many bars are there?"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)
