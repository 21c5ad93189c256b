from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mpa_edge.config.target import ImageBudget
from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.convert import stage, staged_config
from mpa_edge.runs.files import read_json, write_json
from tests.exporters.gguf.made import STUDENT, source_of


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the student with more beside it than the converter should see."""
    folder = Path(shutil.copytree(STUDENT, tmp_path / "source"))
    for name in ("evil.py", "pytorch_model.bin", "optimizer.pt", "consolidated.safetensors", "adapter.safetensors"):
        (folder / name).write_text(name)
    return folder


def test_only_what_the_converter_needs_is_staged(source: Path, tmp_path: Path) -> None:
    staged = stage(source_of(source), tmp_path / "staged")
    assert sorted(path.name for path in staged.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model-00000.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (staged / "model-00000.safetensors").resolve() == source / "model.safetensors"
    assert not (staged / "processor_config.json").exists()  # the converter would prefer it


def test_nothing_that_is_staged_names_code(source: Path, tmp_path: Path) -> None:
    for name in ("config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json"):
        write_json(source / name, read_json(source / name) | {"auto_map": {"AutoModel": "evil.M"}})
    staged = stage(source_of(source), tmp_path / "staged")
    assert "evil" not in "".join(path.read_text() for path in staged.glob("*.json") if not path.is_symlink())


def test_the_checkpoint_stays_as_it_was(source: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    stage(source_of(source), tmp_path / "staged", ImageBudget(max_tiles=1, max_pixels=10**6))
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_an_image_budget_takes_the_place_of_the_checkpoints_values(tmp_path: Path) -> None:
    staged = stage(source_of(STUDENT), tmp_path / "staged", ImageBudget(max_tiles=1, max_pixels=10**6))
    values = json.loads((staged / "preprocessor_config.json").read_text())
    assert values["size"] == {"longest_edge": 64}
    assert values["image_mean"] == [0.5, 0.5, 0.5]


def test_the_chat_template_is_staged_wherever_the_checkpoint_has_it(source: Path, tmp_path: Path) -> None:
    template = (source / "chat_template.jinja").read_text()
    (source / "chat_template.jinja").unlink()
    write_json(source / "chat_template.json", {"chat_template": template})
    staged = stage(source_of(source), tmp_path / "staged")
    assert read_json(staged / "tokenizer_config.json")["chat_template"] == template


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
