from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpa_edge.config.target import ImageBudget
from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.convert import convert
from mpa_edge.runs.files import read_json, sha256_file, write_json
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from tests.exporters.gguf.made import STUDENT, checkpoint, converted, source_of
from tests.families import zoo

ALL = ("student", *zoo.MODEL_TYPES)
PROJECTORS = {
    "student": "idefics3",
    "idefics3": "idefics3",
    "smolvlm": "idefics3",
    "qwen2_vl": "qwen2vl_merger",
    "qwen2_5_vl": "qwen2.5vl_merger",
    "qwen3_vl": "qwen3vl_merger",
    "qwen3_5": "qwen3vl_merger",
    "gemma4": "gemma4v",
    "llava": "mlp",
    "internvl": "internvl",
    "lfm2_vl": "lfm2",
}
LANGUAGES = {
    "qwen2_vl": "qwen2vl",
    "qwen2_5_vl": "qwen2vl",
    "qwen3_vl": "qwen3vl",
    "qwen3_5": "qwen35",
    "gemma4": "gemma4",
    "internvl": "qwen2",
    "lfm2_vl": "lfm2",
}
HARD_TEXTS = (
    "How many?  12345 or 3.14\n\n\tNo -- it's \"them\", isn't it?!",
    "<|im_start|>user\nWhat's 7 x 8?<|im_end|>",
    "naïve café, 日本語, 🦙🦙, ½ and \u200b zero width",
)


def test_a_precision_that_must_be_quantized_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MpaError, match="language cannot be converted to q4_0 directly: choose f32, f16, bf16"):
        convert(source_of(STUDENT), "language", tmp_path / "x.gguf", "q4_0")


@pytest.mark.peer
@pytest.mark.parametrize("which", ALL)
def test_every_family_becomes_the_two_files_of_llama_cpp(which: str) -> None:
    language, mmproj = (read_header(converted(which, component)) for component in ("language", "mmproj"))
    assert language.metadata["general.architecture"] == LANGUAGES.get(which, "llama")
    assert mmproj.metadata["general.architecture"] == "clip"
    named = {mmproj.metadata.get(f"clip.{place}projector_type") for place in ("", "vision.")}
    assert PROJECTORS[which] in named  # with an audio encoder beside it, each names its own
    assert not [tensor.name for tensor in language.tensors if tensor.name.startswith(("v.", "mm."))]
    assert {tensor.type for tensor in (*language.tensors, *mmproj.tensors)} == {"f16", "f32"}
    for tensor in (*language.tensors, *mmproj.tensors):
        if tensor.name.startswith("a."):  # an audio encoder, which is left as llama.cpp's converter writes it
            continue
        small = len(tensor.shape) == 1 or "embd" in tensor.name or "conv" in tensor.name
        assert small or tensor.type == "f16", tensor.name


def reference_features(folder: Path, pixels: dict[str, Any]) -> np.ndarray:
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    names = {"pixel_values", "pixel_attention_mask", "image_grid_thw", "spatial_shapes", "image_position_ids"}
    with torch.no_grad():
        found = model.model.get_image_features(**{name: pixels[name] for name in names & set(pixels)})
    parts = [getattr(found, "pooler_output", found), *(getattr(found, "deepstack_features", None) or ())]
    whole = [torch.cat(list(part)) if isinstance(part, list | tuple) else part for part in parts]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in whole], -1).numpy()


def features(which: str, precision: str, image: Any) -> np.ndarray:
    from mpa_edge.vlm.llama_cpp.language import LanguageModel
    from mpa_edge.vlm.llama_cpp.vision import Projector

    language = LanguageModel(converted(which, "language"), context_tokens=512, threads=1)
    projector = Projector(
        converted(which, "mmproj", precision), language, 0, any_size=which.startswith(("qwen", "lfm2", "gemma"))
    )
    pieces = projector.look(image).pieces
    projector.close()
    language.close()
    return np.concatenate([piece.embeddings for piece in pieces if piece.embeddings is not None])


# sizes that the image processors leave alone: what is compared is the encoder
SIZES = {
    "student": (128, 64),
    "idefics3": (256, 128),
    "smolvlm": (256, 128),
    "qwen3_vl": (224, 160),
    "qwen3_5": (224, 160),
    "gemma4": (480, 336),
    "llava": (112, 112),
    "internvl": (224, 112),
    "lfm2_vl": (128, 96),
}


@pytest.mark.peer
@pytest.mark.parametrize(
    ("which", "precision", "cosine"),
    [
        *((which, "f16", 0.9999) for which in ALL),
        *((which, "q8_0", 0.998) for which in ("student", "llava", "internvl")),
    ],
)
def test_llama_cpp_sees_what_the_checkpoint_sees(which: str, precision: str, cosine: float) -> None:
    from transformers import AutoImageProcessor

    from mpa_edge.exporters.verify.probes import drawn

    image = drawn(*SIZES.get(which, (224, 168)), seed=3)
    processor = AutoImageProcessor.from_pretrained(checkpoint(which), backend="pil")
    wanted = reference_features(checkpoint(which), processor(image, return_tensors="pt"))
    found = features(which, precision, image)
    assert found.shape == wanted.shape
    likeness = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    assert likeness.min() > cosine


@pytest.mark.peer
@pytest.mark.parametrize("which", ALL)
def test_llama_cpp_cuts_text_as_the_checkpoint_does(which: str) -> None:
    from transformers import AutoTokenizer

    from mpa_edge.vlm.llama_cpp.language import LanguageModel

    tokenizer = AutoTokenizer.from_pretrained(checkpoint(which))
    model = LanguageModel(converted(which, "language"), context_tokens=512, threads=1)
    for text in HARD_TEXTS:
        assert model.tokenize(text) == tokenizer.encode(text, add_special_tokens=False)
    model.close()


# --- other checkpoints of the same model ------------------------------------------------------------------------------


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A copy of the built-in student that a test may change; its name stays, for it is written into the file."""
    return Path(shutil.copytree(STUDENT, tmp_path / "copy" / "student"))


def resaved(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], n_files: int = 1) -> None:
    import torch  # noqa: F401
    from safetensors.torch import load_file, save_file

    tensors = change(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    names, index = sorted(tensors), {}
    for i in range(n_files):
        file = f"model-{i + 1:05}-of-{n_files:05}.safetensors" if n_files > 1 else "model.safetensors"
        part = {name: tensors[name].contiguous() for name in names[i::n_files]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    if n_files > 1:
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


@pytest.mark.peer
def test_a_checkpoint_in_pieces_gives_the_same_weights(student: Path, tmp_path: Path) -> None:
    resaved(student, lambda tensors: tensors, n_files=3)
    convert(source_of(student), "language", tmp_path / "x.gguf")
    assert weights(tmp_path / "x.gguf") == weights(converted("student", "language"))


def weights(path: Path) -> dict[str, bytes]:
    """Every tensor's bytes: their order in the file may differ."""
    data = path.read_bytes()
    return {t.name: data[t.offset : t.offset + t.n_bytes] for t in read_header(path).tensors}


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_numbers_of_any_width_become_half_precision(kind: str, student: Path, tmp_path: Path) -> None:
    import torch

    resaved(student, lambda tensors: {name: tensor.to(getattr(torch, kind)) for name, tensor in tensors.items()})
    convert(source_of(student), "language", tmp_path / "x.gguf")
    made, plain = read_header(tmp_path / "x.gguf"), read_header(converted("student", "language"))
    assert [(t.name, t.shape, t.type) for t in made.tensors] == [(t.name, t.shape, t.type) for t in plain.tensors]
    if kind == "float32":
        assert sha256_file(tmp_path / "x.gguf") == sha256_file(converted("student", "language"))


@pytest.mark.peer
def test_the_layer_for_predicting_several_tokens_is_left_out(tmp_path: Path) -> None:
    """Published checkpoints of Qwen3.5 hold it; what transformers saves does not, but its config.json counts it."""
    from safetensors.torch import load_file, save_file

    from mpa_edge.vlm.transformers.checkpoint import load_model

    source = zoo.checkpoint("qwen3_5")
    assert read_json(source / "config.json")["text_config"]["mtp_num_hidden_layers"] == 1
    published = Path(shutil.copytree(source, tmp_path / "published"))
    tensors = load_file(published / "model.safetensors")
    norm = tensors["model.language_model.norm.weight"]
    extra = {"mtp.norm.weight": norm.clone(), "mtp.layers.0.mlp.down_proj.weight": norm.expand(2, -1).clone()}
    save_file(tensors | extra, published / "model.safetensors", {"format": "pt"})
    assert not [name for name, _ in load_model(str(published), "cpu").named_parameters() if "mtp" in name]
    convert(source_of(published), "language", tmp_path / "x.gguf")
    made, plain = read_header(tmp_path / "x.gguf"), read_header(converted("qwen3_5", "language"))
    assert [(t.name, t.shape, t.type) for t in made.tensors] == [(t.name, t.shape, t.type) for t in plain.tensors]
    assert made.metadata["qwen35.block_count"] == 3


@pytest.mark.peer
def test_the_image_budget_reaches_the_file(tmp_path: Path) -> None:
    convert(source_of(STUDENT), "mmproj", tmp_path / "x.gguf", budget=ImageBudget(max_tiles=1, max_pixels=10**6))
    assert read_header(tmp_path / "x.gguf").metadata["clip.vision.preproc_image_size"] == 64
    assert read_header(converted("student", "mmproj")).metadata["clip.vision.preproc_image_size"] == 128


@pytest.mark.peer
def test_code_that_comes_with_a_checkpoint_is_never_run(student: Path, tmp_path: Path) -> None:
    witness = tmp_path / "it-ran"
    (student / "evil.py").write_text(f"open({str(witness)!r}, 'w')\nclass T: pass\n")
    for name, key in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        value = "evil.T" if key == "AutoConfig" else ["evil.T", "evil.T"]
        write_json(student / name, read_json(student / name) | {"auto_map": {key: value}})
    convert(source_of(student), "language", tmp_path / "x.gguf")
    assert not witness.exists()


# --- what does not work ends in one line ------------------------------------------------------------------------------


@pytest.mark.peer
def test_the_converters_last_word_is_passed_on(student: Path, tmp_path: Path) -> None:
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    out = tmp_path / "out" / "x.gguf"
    with pytest.raises(MpaError, match="failed on the language .*pre-tokenizer was not recognized") as caught:
        convert(source_of(student), "language", out)
    assert "\n" not in str(caught.value)
    assert os.listdir(out.parent) == []


@pytest.mark.peer
def test_a_damaged_checkpoint_leaves_no_file(student: Path, tmp_path: Path) -> None:
    path = student / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1_000_000])
    out = tmp_path / "out" / "x.gguf"
    with pytest.raises(MpaError, match="model.safetensors' is damaged"):
        convert(source_of(student), "language", out)
    assert os.listdir(out.parent) == []
