"""An ONNX folder is loaded without torch, by its reference, and what is wrong with it is one line."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mpa_edge import vlm
from mpa_edge.errors import MpaError
from mpa_edge.exporters.verify.probes import drawn
from mpa_edge.types import Request
from mpa_edge.vlm.onnxruntime.model import OnnxVLM
from mpa_edge.vlm.onnxruntime.sessions import Decoder
from tests.vlm import exported

pytestmark = pytest.mark.slow

WIDE = drawn(256, 64, seed=1)
ASKED = Request(WIDE, "What is the highest value?", 8)


@functools.cache
def student() -> OnnxVLM:
    return OnnxVLM(exported.onnx_folder("student"), name="student", threads=1)


# --- without torch ----------------------------------------------------------------------------------------------------

ALONE = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
from PIL import Image
from mpa_edge import vlm
from mpa_edge.errors import MpaError
from mpa_edge.types import Request
try:
    model = vlm.load({folder!r}, name="export", threads=1)
    print(model.answer([Request(Image.open({image!r}), "What is the highest value?", 8)])[0].text)
except MpaError as error:
    print("error:", error)
"""


def alone(folder: Path, image: Path, *blocked: str) -> str:
    WIDE.save(image)
    script = ALONE.format(blocked=blocked, folder=str(folder), image=str(image))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_folder_answers_where_torch_and_transformers_are_missing(tmp_path: Path) -> None:
    said = alone(
        exported.onnx_folder("student"),
        tmp_path / "a.png",
        "torch",
        "torchvision",
        "transformers",
        "peft",
        "onnx",
        "onnxscript",
        "llama_cpp",
        "safetensors",
    )
    assert said == student().answer([ASKED])[0].text != ""


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
def test_a_missing_package_is_named_with_its_extra(package: str, tmp_path: Path) -> None:
    said = alone(exported.onnx_folder("student"), tmp_path / "a.png", package)
    assert said == f"error: {package} is missing: pip install 'mpa-edge[onnx]'"


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def a_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported.onnx_folder("student"), tmp_path / "copy"))


def error(folder: Path) -> str:
    with pytest.raises(MpaError) as caught:
        OnnxVLM(folder, name="damaged", threads=1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_reference_to_an_export_loads_its_runtime(a_copy: Path) -> None:
    loaded = vlm.load(str(a_copy), name="it", threads=1)
    assert isinstance(loaded, OnnxVLM)
    assert (loaded.name, loaded.threads) == ("it", 1)
    loaded.close()
    loaded.close()


def test_an_export_is_known_by_its_weights(a_copy: Path) -> None:
    before = vlm.fingerprint(str(a_copy))
    weights = a_copy / "onnx" / "embed_tokens.onnx"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert vlm.fingerprint(str(a_copy)) != before


def test_threads_come_from_the_caller_then_the_target_then_the_machine(a_copy: Path, monkeypatch) -> None:
    exported.change(a_copy, threads=1)
    assert OnnxVLM(a_copy, name="it", threads=2).threads == 2
    assert OnnxVLM(a_copy, name="it").threads == 1
    exported.change(a_copy, threads=None)
    monkeypatch.setattr("mpa_edge.vlm.onnxruntime.model.os.sched_getaffinity", lambda _: {0, 3})
    assert OnnxVLM(a_copy, name="it").threads == 2


@pytest.mark.parametrize("name", ["vision_encoder", "embed_tokens", "decoder_model_merged"])
def test_a_damaged_file_is_one_line_with_its_name(a_copy: Path, name: str) -> None:
    path = a_copy / "onnx" / f"{name}.onnx"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff" * 100):
        path.write_bytes(damaged)
        said = error(a_copy)
        assert said.startswith(f"cannot load {path} (")
        assert said.endswith("copy the whole folder, or rerun mpa-edge export")
    path.unlink()
    assert error(a_copy) == f"{path} is missing: copy the whole folder, or rerun mpa-edge export"


def test_a_damaged_tokenizer_is_one_line(a_copy: Path) -> None:
    path = a_copy / "tokenizer.json"
    for content in ("{", "{}"):
        path.write_text(content)
        assert error(a_copy) == f"{path} is missing or damaged: copy the whole folder, or rerun mpa-edge export"
    path.unlink()
    assert error(a_copy) == f"{path} is missing or damaged: copy the whole folder, or rerun mpa-edge export"


def test_a_folder_of_another_format_is_refused(a_copy: Path) -> None:
    exported.change(a_copy, format="hybrid", files={"vision": "onnx/vision_encoder.onnx", "language": "tokenizer.json"})
    assert error(a_copy) == f"{a_copy} is no ONNX export (format hybrid): name an ONNX folder"


def test_a_graph_of_another_model_is_refused(a_copy: Path) -> None:
    decoder = a_copy / "onnx" / "decoder_model_merged.onnx"
    shutil.copy(exported.onnx_folder("idefics3") / "onnx" / decoder.name, decoder)
    assert error(a_copy) == f"{decoder} does not fit artifact.json: copy the whole folder, or rerun mpa-edge export"
    shutil.copy(a_copy / "onnx" / "embed_tokens.onnx", decoder)
    assert error(a_copy) == f"{decoder} does not fit artifact.json: copy the whole folder, or rerun mpa-edge export"


def test_a_vision_encoder_of_another_width_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_ = np.zeros((48, 128), np.float32)
    monkeypatch.setattr(student().vision, "encode", lambda _: narrow_)
    with pytest.raises(MpaError, match="gives 48 x 128 for 48 x 256 numbers: rerun mpa-edge export"):
        student().answer([Request(drawn(128, 64, seed=1), "?")])


def test_a_table_that_is_another_graph_is_one_line(a_copy: Path) -> None:
    shutil.copy(a_copy / "onnx" / "vision_encoder.onnx", a_copy / "onnx" / "embed_tokens.onnx")
    with pytest.raises(MpaError, match=r"embed_tokens.onnx failed \(.*\): free memory, or rerun mpa-edge export"):
        OnnxVLM(a_copy, name="swapped", threads=1).answer([ASKED])


def test_a_graph_that_fails_while_it_runs_is_one_line(a_copy: Path) -> None:
    shutil.copy(exported.onnx_folder("idefics3") / "onnx" / "vision_encoder.onnx", a_copy / "onnx")
    broken = OnnxVLM(a_copy, name="broken", threads=1)
    broken.artifact.image["max_image_size"]["longest_edge"] = 32
    with pytest.raises(MpaError, match=r"vision_encoder.onnx failed \(.*\): free memory, or rerun mpa-edge export"):
        broken.answer([ASKED])


def test_numbers_that_are_none_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    nan = np.full((1, 512), np.nan, np.float32)
    monkeypatch.setattr(Decoder, "step", lambda *_: (nan, {}))
    with pytest.raises(MpaError, match="computes values that are not numbers: export with another scheme"):
        student().answer([ASKED])
