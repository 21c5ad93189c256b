"""Our image pipelines against the Pillow backend of transformers: the same bits, the same prompt."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mpa_edge.errors import MpaError
from mpa_edge.exporters.publish.layout import write_processor
from mpa_edge.vlm import pixels
from mpa_edge.vlm.pixels.config import image_config
from mpa_edge.vlm.transformers import checkpoint
from tests.docs.markdown import ROOT
from tests.families import zoo

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "idefics3": ("idefics3", {}),
    "idefics3 in one tile": ("idefics3", {"splitting": False}),
    "smolvlm": ("smolvlm", {}),
    "qwen2_vl": ("qwen2_vl", {}),
    "qwen2_5_vl": ("qwen2_5_vl", {}),
    "qwen3_vl": ("qwen3_vl", {}),
    "qwen3_5": ("qwen3_5", {}),
    "gemma4": ("gemma4", {}),
    "llava siglip": ("llava", {}),
    "llava clip": ("llava", {"tower": "clip"}),
    "internvl": ("internvl", {}),
    "lfm2_vl": ("lfm2_vl", {}),
}
# what transformers calls an array that the vision encoder of this family calls otherwise
RENAMED = {"grid_thw": "image_grid_thw", "pixel_position_ids": "image_position_ids"}
DTYPES = {"pixel_values": np.float32, "pixel_attention_mask": np.bool_}
# it has no Pillow backend: torchvision's
TORCHVISION = "Lfm2VlImageProcessor"
TEXT = {"input_ids", "attention_mask", "mm_token_type_ids"}
# 1 px, narrow, exactly a tile, a multiple of tiles, one off, larger than everything
SIZES = [
    (1, 1),
    (2, 1),
    (1, 3),
    (3, 500),
    (500, 3),
    (28, 28),
    (64, 64),
    (65, 64),
    (112, 112),
    (128, 64),
    (256, 256),
    (255, 257),
    (140, 100),
    (100, 140),
    (333, 97),
    (97, 333),
    (640, 480),
    (1200, 300),
]


@functools.cache
def config_of(folder: Path) -> dict[str, Any]:
    """What an export of a checkpoint says of its image processor, after a way through artifact.json."""
    processor = checkpoint.load_processor(str(folder))
    with tempfile.TemporaryDirectory() as export:
        write_processor(processor, Path(export), None)
        shutil.copy(folder / "config.json", export)
        return json.loads(json.dumps(image_config(Path(export), processor)))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise over a slope: every filter and every rounding shows."""
    random = np.random.default_rng([width, height, seed])
    slope = np.linspace(0, 180, width)[None, :, None] * np.ones((height, 1, 3))
    return Image.fromarray((slope + random.integers(0, 75, (height, width, 3))).astype(np.uint8))


@functools.cache
def theirs(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    processor = checkpoint.load_processor(str(folder))
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert type(processor.image_processor).__name__.endswith(("Pil", TORCHVISION))
    return processor


def compare(folder: Path, image: Image.Image) -> pixels.Prepared:
    """Ours, after it was found equal to theirs: pixels bit by bit, prompt token by token."""
    processor = theirs(folder)
    config = config_of(folder)
    ours = pixels.prepare(config, image)
    prompt = checkpoint.chat_prompt(processor, "How many?")
    expected = processor(text=[prompt], images=[[image]], add_special_tokens=False, return_tensors="np")
    assert {RENAMED.get(name, name) for name in ours.pixels} == {*expected} - TEXT
    for name, array in ours.pixels.items():
        by_number = name == "pixel_attention_mask" and config["kind"] == "lfm2_vl"
        assert array.dtype == (np.int64 if by_number else DTYPES.get(name, np.int64))
        assert np.array_equal(array, expected[RENAMED.get(name, name)]), name
    assert prompt.count(config["image_token"]) == 1
    ids = processor.tokenizer(prompt.replace(config["image_token"], ours.expansion), add_special_tokens=False).input_ids
    assert ids == expected["input_ids"][0].tolist()
    assert 0 < ours.expansion.count(config["image_token"]) == ids.count(processor.image_token_id)
    return ours


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_bits_and_tokens_are_those_of_transformers(case: str, size: tuple[int, int]) -> None:
    model_type, options = CASES[case]
    compare(zoo.checkpoint(model_type, **options), noise(*size))


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(width=st.integers(1, 700), height=st.integers(1, 700), seed=st.integers(0, 9))
def test_any_size(case: str, width: int, height: int, seed: int) -> None:
    model_type, options = CASES[case]
    if max(width, height) > 200 * min(width, height):
        width = height
    compare(zoo.checkpoint(model_type, **options), noise(width, height, seed))


def changed(folder: Path, tmp_path: Path, **values: Any) -> Path:
    """A copy of a checkpoint without weights whose image processor has other values."""
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "copy" / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"] |= values
    path.write_text(json.dumps(content))
    return tmp_path / "copy"


@pytest.mark.parametrize("size", [(2000, 1100), (512, 512), (513, 512), (60, 90)], ids=str)
def test_numbers_of_the_real_smolvlm(size: tuple[int, int], tmp_path: Path) -> None:
    real = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}
    prepared = compare(changed(zoo.checkpoint("smolvlm"), tmp_path, **real), noise(*size))
    rows, columns = {(2000, 1100): (3, 4), (60, 90): (4, 3)}.get(size, (4, 4))
    assert prepared.pixels["pixel_values"].shape == (1, rows * columns + 1, 3, 512, 512)


def test_no_image_is_scaled_beyond_4096_px_and_places_beyond_six_are_spelled_out(tmp_path: Path) -> None:
    huge = {"size": {"longest_edge": 5000}, "max_image_size": {"longest_edge": 512}}
    folder = changed(zoo.checkpoint("idefics3"), tmp_path, **huge)
    prepared = compare(folder, noise(400, 20))
    assert "<row_1_col_8>" in prepared.expansion
    assert compare(folder, noise(20, 400)).pixels["pixel_values"].shape[1] == 9


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("idefics3", {"size": {"longest_edge": 63}}),  # less than a tile, and odd
        ("idefics3", {"size": {"longest_edge": 255}, "resample": 2}),
        ("idefics3", {"do_resize": False}),
        ("qwen2_vl", {"do_resize": False}),
        ("qwen2_5_vl", {"size": {"shortest_edge": 28 * 28 * 9, "longest_edge": 28 * 28 * 10}}),
        ("qwen2_vl", {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7], "rescale_factor": 0.004}),
        ("llava", {"do_normalize": False}),
        ("llava", {"do_rescale": False}),
        ("llava", {"size": {"shortest_edge": 50}, "do_center_crop": True, "crop_size": {"height": 61, "width": 44}}),
        ("llava", {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "image_mean": [0.5, 0.3, 0.1]}),
        ("llava", {"image_processor_type": "CLIPImageProcessor", "do_pad": True}),
        ("internvl", {"crop_to_patches": False}),  # the processor asks for patches all the same
        ("internvl", {"min_patches": 2, "max_patches": 12}),
        ("internvl", {"max_patches": 1}),
    ],
    ids=str,
)
def test_other_values(model_type: str, values: dict[str, Any], tmp_path: Path) -> None:
    folder = changed(zoo.checkpoint(model_type), tmp_path, **values)
    for size in [(140, 112), (56, 196), (224, 224)]:
        compare(folder, noise(*size))


@pytest.mark.parametrize("model_type", zoo.MODEL_TYPES)
def test_a_checkpoint_that_says_little_gets_the_defaults_of_transformers(model_type: str, tmp_path: Path) -> None:
    folder = changed(zoo.checkpoint(model_type), tmp_path)
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"] = {"image_processor_type": content["image_processor"]["image_processor_type"]}
    path.write_text(json.dumps(content))
    for size in [(140, 112), (900, 300)]:
        compare(folder, noise(*size))


@pytest.mark.parametrize(
    ("model_type", "old"),
    [
        ("qwen2_vl", {"size": {"shortest_edge": 1, "longest_edge": 9}, "min_pixels": 3136, "max_pixels": 28 * 28 * 20}),
        ("qwen2_5_vl", {"image_processor_type": "Qwen2VLImageProcessorFast", "min_pixels": 28 * 28 * 30}),
        ("llava", {"image_processor_type": "CLIPImageProcessor", "size": 60, "crop_size": 56, "do_center_crop": True}),
    ],
    ids=str,
)
def test_files_of_older_checkpoints(model_type: str, old: dict[str, Any], tmp_path: Path) -> None:
    """A flat preprocessor_config.json beside a processor_config.json without an image processor, old names in it."""
    folder = changed(zoo.checkpoint(model_type), tmp_path)
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    values = content.pop("image_processor")
    path.write_text(json.dumps(content))
    (folder / "preprocessor_config.json").write_text(json.dumps({**values, **old}))
    for size in [(140, 112), (900, 300)]:
        compare(folder, noise(*size))


def test_what_save_pretrained_wrote_last_wins_over_an_older_file(tmp_path: Path) -> None:
    folder = changed(zoo.checkpoint("llava"), tmp_path)
    old = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    (folder / "preprocessor_config.json").write_text(json.dumps({**old, "image_mean": [0.0, 0.0, 0.0]}))
    compare(folder, noise(64, 64))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_an_image_in_another_mode_is_what_it_is_in_rgb(mode: str) -> None:
    config = config_of(zoo.checkpoint("llava", tower="clip"))
    image = noise(112, 112).convert(mode)
    ours, expected = (pixels.prepare(config, each).pixels["pixel_values"] for each in (image, image.convert("RGB")))
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize("model_type", [name for name in zoo.MODEL_TYPES if name != "lfm2_vl"])
def test_the_image_as_scaled_is_a_fixed_point(model_type: str) -> None:
    """Runtimes with a pipeline of their own are given this image, so that nothing is left for them to scale."""
    config = config_of(zoo.checkpoint(model_type))
    once = pixels.resized(config, noise(200, 150))
    again = pixels.resized(config, once)
    assert once.size == again.size
    assert np.array_equal(np.asarray(once), np.asarray(again))


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_an_image_too_narrow_for_qwen_is_named(model_type: str) -> None:
    config = config_of(zoo.checkpoint(model_type))
    assert config["image_token"] in pixels.prepare(config, noise(200, 1)).expansion
    with pytest.raises(MpaError, match=r"an image of 1 x 201 is too narrow .*: crop it or leave it out"):
        pixels.prepare(config, noise(1, 201))


def test_an_image_processor_nobody_knows_is_refused(tmp_path: Path) -> None:
    folder = changed(zoo.checkpoint("llava"), tmp_path, image_processor_type="PixtralImageProcessor")
    with pytest.raises(MpaError, match=r"model type 'llava' with the image processor 'PixtralImageProcessor': export"):
        config_of(folder)


ALONE = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "transformers", "onnx", "huggingface_hub"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
from PIL import Image
from mpa_edge.vlm import pixels
for config in sys.argv[1:]:
    prepared = pixels.prepare(json.loads(config), Image.new("RGB", (90, 70), "red"))
    print(prepared.expansion.count(json.loads(config)["image_token"]))
"""


def test_a_device_needs_neither_torch_nor_transformers() -> None:
    configs = [json.dumps(config_of(zoo.checkpoint(model_type))) for model_type in zoo.MODEL_TYPES]
    done = subprocess.run([sys.executable, "-c", ALONE, *configs], capture_output=True, text=True, cwd=ROOT, timeout=99)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(zoo.MODEL_TYPES)
