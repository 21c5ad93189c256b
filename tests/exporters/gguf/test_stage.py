from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.convert import stage, staged_config
from mpa_edge.runs.files import write_json
from mpa_edge.vlm import WEIGHTS

STUDENT = WEIGHTS / "student"


def checkpoint(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    write_json(folder / "config.json", {"model_type": "llava", "text_config": {"model_type": "llama"}} | config)
    write_json(folder / "preprocessor_config.json", {"size": 1, "auto_map": {"AutoImageProcessor": "evil.P"}})
    write_json(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "eos_token": "x"})
    for name in ("model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json", "tokenizer.json"):
        (folder / name).write_text(name)
    for name in ("evil.py", "pytorch_model.bin", "optimizer.pt", "README.md"):
        (folder / name).write_text(name)
    return folder


def test_only_what_the_converter_needs_is_staged(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    staged = stage(source, tmp_path / "staged")
    assert sorted(path.name for path in staged.iterdir()) == [
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (staged / "model-2.safetensors").resolve() == source / "model-2.safetensors"


def test_nothing_that_is_staged_names_code(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", auto_map={"AutoModel": "evil.M"}, vision_config={"auto_map": {}})
    staged = stage(source, tmp_path / "staged")
    assert "auto_map" not in "".join(path.read_text() for path in staged.glob("*.json") if not path.is_symlink())
    assert json.loads((staged / "tokenizer_config.json").read_text()) == {"eos_token": "x"}


def test_the_checkpoint_stays_as_it_was(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    stage(source, tmp_path / "staged", {"size": 2})
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_image_values_take_the_place_of_the_checkpoints(tmp_path: Path) -> None:
    staged = stage(STUDENT, tmp_path / "staged", {"size": {"longest_edge": 64}})
    values = json.loads((staged / "preprocessor_config.json").read_text())
    assert values["size"] == {"longest_edge": 64}
    assert values["image_mean"] == [0.5, 0.5, 0.5]
    assert not (staged / "processor_config.json").exists()  # the converter would prefer it


@pytest.mark.parametrize(
    ("model_type", "text", "name"),
    [
        ("idefics3", "llama", "VLlama3ForCausalLM"),
        ("smolvlm", "llama", "VLlama3ForCausalLM"),
        ("llava", "llama", "LlamaForCausalLM"),
        ("llava", "qwen2", "Qwen2ForCausalLM"),
        ("internvl", "qwen2", "Qwen2ForCausalLM"),
    ],
)
def test_the_language_model_gets_its_class(model_type: str, text: str, name: str) -> None:
    config = {"model_type": model_type, "text_config": {"model_type": text}}
    assert staged_config(config)["text_config"]["architectures"] == [name]
    assert "architectures" not in config["text_config"]


def test_qwen_keeps_its_own_class() -> None:
    config = {"model_type": "qwen2_vl", "architectures": ["X"], "text_config": {"model_type": "qwen2_vl_text"}}
    assert staged_config(config) == config


def test_an_unknown_language_model_is_refused() -> None:
    with pytest.raises(MpaError, match="GGUF takes no language model of type 'mamba' .*: use an onnx scheme"):
        staged_config({"model_type": "llava", "text_config": {"model_type": "mamba"}})


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    for path in source.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(MpaError, match="holds no config.json with safetensors"):
        stage(source, tmp_path / "staged")


def test_a_checkpoint_without_an_image_processor_is_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    (source / "preprocessor_config.json").unlink()
    with pytest.raises(MpaError, match="has no image processor: save the model's processor into it"):
        stage(source, tmp_path / "staged")
