"""A checkpoint in its authors' own format is rewritten once, whole, or refused in one line; no code of theirs runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpa_edge.errors import MpaError
from mpa_edge.vlm.transformers.files import INDEX, WEIGHTS, local_folder
from mpa_edge.vlm.transformers.own_formats.rewriting import Rule, cut
from tests.families import zoo


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mpa-edge"


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """An InternVL2-2B with a licence, a model card, and program code that must not run."""
    folder = Path(shutil.copytree(zoo.checkpoint("internvl2_2b"), tmp_path / "größer als 2B"))
    (folder / "LICENSE").write_text("MIT License")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    for name in ("configuration_internvl_chat", "modeling_internvl_chat", "tokenization_internlm2"):
        (folder / f"{name}.py").write_text("raise SystemExit('this must never run')")
    return folder


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit config.json."""
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_it_is_rewritten_once_and_again_when_a_file_changes(student: Path, cache: Path) -> None:
    first = local_folder(str(student))
    made = (first / WEIGHTS).stat().st_mtime_ns
    assert first.parent == cache
    assert local_folder(str(student)) == first
    assert (first / WEIGHTS).stat().st_mtime_ns == made
    assert {path.name for path in student.iterdir()} >= {"LICENSE", INDEX}
    assert (first / "LICENSE").read_text() == "MIT License"
    assert not list(first.glob("*.py"))
    change(student, lambda config: config.update(max_dynamic_patch=6))
    again = local_folder(str(student))
    assert again != first
    assert json.loads((again / "processor_config.json").read_text())["image_processor"]["max_patches"] == 6


def test_every_value_is_there_once_in_its_own_type(tmp_path: Path) -> None:
    before = zoo.checkpoint("internvl2_2b", dtype="bfloat16")
    theirs, ours = weights(before), weights(local_folder(str(before)))
    assert {tensor.dtype for tensor in ours.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in ours.values()) == sum(tensor.numel() for tensor in theirs.values())
    sums = [torch.stack([one.double().sum() for one in side.values()]).sum() for side in (theirs, ours)]
    assert sums[0] == pytest.approx(sums[1])


def test_heads_of_a_group_are_taken_apart() -> None:
    fused = torch.arange(2 * 4 * 3).reshape(-1, 1)  # two groups: two heads of queries, keys, values; three rows each
    queries, keys, values = (part[:, 0].tolist() for part in cut(fused, Rule("", ("q", "k", "v"), 2, (2, 1, 1))))
    assert queries == [*range(6), *range(12, 18)]
    assert keys == [6, 7, 8, 18, 19, 20]
    assert values == [9, 10, 11, 21, 22, 23]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda c: c.update(ps_version="v1"), r"ps_version is 'v1' in config.json, and must be 'v2'"),
        (lambda c: c.update(select_layer=-4), r"select_layer is -4"),
        (lambda c: c.update(use_llm_lora=16), r"merge its LoRA with the authors' tools/merge_lora.py first"),
        (lambda c: c.update(template="internvl_zh"), r"template 'internvl_zh' is not one of internlm2-chat, phi3-chat"),
        (lambda c: c["llm_config"].update(model_type="qwen2"), r"decoder 'qwen2' is not one of internlm2, phi3"),
        (lambda c: c["llm_config"].pop("hidden_size"), r"config.json' lacks or garbles 'hidden_size'"),
        (lambda c: c.pop("llm_config"), r"lacks vision_config or llm_config"),
        (
            lambda c: c["llm_config"].update(num_hidden_layers=3),
            r"lacks 9 tensors of its config.json, first model\.lang",
        ),
        (
            lambda c: c["llm_config"].update(num_hidden_layers=1),
            r"holds 9 tensors that its config.json has no place for",
        ),
        (lambda c: c["llm_config"].update(vocab_size=999), r"2 tensors do not fit config.json, first lm_head.weight"),
    ],
)
def test_what_transformers_would_compute_otherwise_is_refused_in_one_line(
    student: Path, cache: Path, edit: Callable[[dict[str, Any]], None], says: str
) -> None:
    change(student, edit)
    with pytest.raises(MpaError, match=says) as caught:
        local_folder(str(student))
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.glob("*") if not path.name.endswith(".lock")]


def test_a_tensor_that_such_a_model_does_not_have_is_named(student: Path) -> None:
    path = sorted(student.glob("*.safetensors"))[0]
    save_file(load_file(path) | {"vision_model.head.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(MpaError, match=r"holds 'vision_model\.head\.weight', which such a model does not have"):
        local_folder(str(student))


def test_a_missing_vocabulary_is_named(student: Path) -> None:
    (student / "tokenizer.model").unlink()
    with pytest.raises(MpaError, match=r"tokenizer\.model' is missing: copy it from the checkpoint again"):
        local_folder(str(student))
