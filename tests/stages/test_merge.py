"""Merging on a tiny random student: what must travel along, and what must be refused."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpa_edge.errors import MpaError, VerificationError
from mpa_edge.nursery.models import build_model, build_processor
from mpa_edge.runs.files import write_json
from mpa_edge.stages.merge import BUILDING, probe_inputs, run_merge
from mpa_edge.vlm.transformers import checkpoint, merging
from mpa_edge.vlm.transformers.merging import check_logits, check_saved, merge

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "student"
    build_model("student").half().save_pretrained(folder)
    build_processor().save_pretrained(folder)
    (folder / "LICENSE").write_text("do what you like")
    (folder / "README.md").write_text("a card")
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    """An adapter that changes something: peft starts B at zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    pattern = r".*text_model\.layers\.\d+\.self_attn\.q_proj"
    model = get_peft_model(checkpoint.load_model(str(base), "cpu"), LoraConfig(r=4, target_modules=pattern))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def changed(adapter, tmp_path):
    """changed(function of the tensors) -> a copy of the adapter with other tensors."""

    def make(change) -> Path:
        shutil.copytree(adapter, tmp_path / "changed")
        save_file(change(load_file(adapter / WEIGHTS)), tmp_path / "changed" / WEIGHTS, {"format": "pt"})
        return tmp_path / "changed"

    return make


@pytest.fixture
def inputs_of(make_run):
    return partial(probe_inputs, make_run())


def test_the_merged_checkpoint_is_whole(base, adapter, tmp_path, inputs_of) -> None:
    out = tmp_path / "out"
    difference = merge(str(base), adapter, out, inputs_of)
    assert 0 <= difference <= 1e-4
    from transformers import AutoModelForImageTextToText, AutoProcessor

    AutoProcessor.from_pretrained(out)
    merged = AutoModelForImageTextToText.from_pretrained(out)
    before = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    assert merged.dtype == torch.float32
    moved = {n for n, p in merged.state_dict().items() if not torch.equal(p, before.state_dict()[n])}
    assert moved
    assert all("self_attn.q_proj" in name for name in moved)
    for name in ("tokenizer.json", "processor_config.json", "chat_template.jinja", "LICENSE", "generation_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes(), name
    assert (out / "BASE_README.md").read_text() == "a card"
    assert not (out / "manifest.json").exists()
    assert not list(out.glob("*.bin"))


def strange_key(tensors):
    return tensors | {"base_model.model.model.nowhere.lora_A.weight": torch.zeros(4, 4)}


def missing_key(tensors):
    return dict(sorted(tensors.items())[1:])


def other_shape(tensors):
    name = min(name for name in tensors if "lora_A" in name)
    return tensors | {name: torch.zeros(8, tensors[name].shape[1])}


def not_a_number(tensors):
    name = min(tensors)
    return tensors | {name: torch.full_like(tensors[name], float("nan"))}


@pytest.mark.parametrize("change", [strange_key, missing_key, other_shape, not_a_number])
def test_an_adapter_that_does_not_fit_is_refused(base, changed, tmp_path, inputs_of, change) -> None:
    with pytest.raises(VerificationError) as caught:
        merge(str(base), changed(change), tmp_path / "out", inputs_of)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_adapter_is_refused(base, adapter, tmp_path, inputs_of) -> None:
    shutil.copytree(adapter, tmp_path / "cut")
    path = tmp_path / "cut" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(VerificationError, match="rerun mpa-edge level"):
        merge(str(base), tmp_path / "cut", tmp_path / "out", inputs_of)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"peft_type": "LORA", "r": "x"}', '{"peft_type": 7}'])
def test_a_damaged_configuration_of_an_adapter_is_refused(base, adapter, tmp_path, inputs_of, text) -> None:
    shutil.copytree(adapter, tmp_path / "cut")
    (tmp_path / "cut" / "adapter_config.json").write_text(text)
    with pytest.raises(VerificationError, match="does not fit the student .*: .*rerun mpa-edge level"):
        merge(str(base), tmp_path / "cut", tmp_path / "out", inputs_of)


def test_weights_of_an_adapter_come_from_its_folder_and_are_no_pickle(base, adapter, tmp_path, inputs_of) -> None:
    shutil.copytree(adapter, tmp_path / "linked")
    (tmp_path / "linked" / WEIGHTS).rename(tmp_path / "elsewhere")
    (tmp_path / "linked" / WEIGHTS).symlink_to("../elsewhere")
    with pytest.raises(VerificationError, match="leads out of the checkpoint's folder"):
        merge(str(base), tmp_path / "linked", tmp_path / "out", inputs_of)
    (tmp_path / "linked" / WEIGHTS).unlink()
    torch.save({}, tmp_path / "linked" / "adapter_model.bin")
    with pytest.raises(VerificationError, match=f"{WEIGHTS}' is damaged"):
        merge(str(base), tmp_path / "linked", tmp_path / "out", inputs_of)


@pytest.fixture
def levelled(make_run, base, adapter):
    """A run whose level is finished."""
    run = make_run(student=str(base), threads=1)
    folder = run.stage_folder("level")
    shutil.copytree(adapter, folder / "adapter")
    write_json(
        folder / "manifest.json",
        {
            "stage": "level",
            "inputs": {},
            "outputs": {"adapter": "x"},
            "config_sha256": "",
            "versions": {},
            "seed": 0,
            "seconds": 0.0,
            "counts": {},
        },
    )
    return run


def loaded_files(folder: Path) -> list[str]:
    """What a loader, or a person, would take for a model."""
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize("suffix", ["q_proj.weight", "fc1.bias", "norm.weight"])
def test_a_weight_that_changes_on_its_way_to_the_disk_is_found(levelled, monkeypatch, suffix) -> None:
    real = checkpoint.load_model

    def spoiled(path: str, device: str):
        model = real(path, device)
        if BUILDING in path:
            with torch.no_grad():
                next(p for name, p in model.named_parameters() if name.endswith(suffix)).add_(0.05)
        return model

    monkeypatch.setattr(merging.checkpoint, "load_model", spoiled)
    with pytest.raises(VerificationError, match=rf"1 tensors changed when they were saved, first .*{suffix}"):
        run_merge(levelled)
    assert loaded_files(levelled.stage_folder("merge")) == []


def test_a_weight_without_adapter_that_changes_is_found(levelled, monkeypatch) -> None:
    real = merging._merged

    def careless(*arguments):
        model, *more = real(*arguments)
        with torch.no_grad():
            model.state_dict()["model.vision_model.post_layernorm.bias"].add_(1e-6)
        return model, *more

    monkeypatch.setattr(merging, "_merged", careless)
    with pytest.raises(VerificationError, match=r"merging changed model\.vision_model\.post_layernorm\.bias"):
        run_merge(levelled)
    assert loaded_files(levelled.stage_folder("merge")) == []


def test_wrong_arithmetic_is_found_by_the_logits(levelled, monkeypatch) -> None:
    real = merging._logits
    monkeypatch.setattr(merging, "_logits", lambda model, inputs: real(model, inputs) * (1.01 if is_peft(model) else 1))
    with pytest.raises(VerificationError, match="merged logits differ from the adapter's by"):
        run_merge(levelled)
    assert loaded_files(levelled.stage_folder("merge")) == []


def is_peft(model) -> bool:
    return hasattr(model, "peft_config")


def test_a_lost_tensor_is_found(levelled, monkeypatch) -> None:
    real = merging.tensors_of
    calls = []

    def lossy(model):
        calls.append(model)
        found = real(model)
        return found if len(calls) < 3 else dict(list(found.items())[1:])

    monkeypatch.setattr(merging, "tensors_of", lossy)
    with pytest.raises(VerificationError, match="merging changed 1 tensors, first .* -> None; rerun with --fresh"):
        run_merge(levelled)
    assert loaded_files(levelled.stage_folder("merge")) == []


def test_run_merge_publishes_only_what_was_verified(levelled, capsys) -> None:
    run_merge(levelled)
    folder = levelled.stage_folder("merge")
    assert {"config.json", "model.safetensors", "tokenizer.json", "manifest.json", "LICENSE"} <= set(
        loaded_files(folder)
    )
    assert not (folder / BUILDING).exists()
    run_merge(levelled)
    assert capsys.readouterr().err.endswith("merge: already done, nothing changed\n")


def test_no_image_to_compare_on(levelled, images_folder) -> None:
    for path in images_folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(MpaError, match="no readable image in"):
        run_merge(levelled)


def test_checks() -> None:
    one, more = {"a": ((1,), "x")}, {"a": ((1,), "x"), "b": ((1,), "y")}
    with pytest.raises(VerificationError, match=r"first b: None -> \(1,\)"):
        check_saved(one, one, more)
    with pytest.raises(VerificationError, match=r"\(1,\) -> \(3,\)"):
        check_saved(one, one, {"a": ((3,), "x")})
    assert check_logits(torch.zeros(1, 2, 3), torch.full((1, 2, 3), 5e-5)) == pytest.approx(5e-5)
    for wrong in (2e-4, float("nan"), float("inf")):
        with pytest.raises(VerificationError):
            check_logits(torch.zeros(1, 2, 3), torch.full((1, 2, 3), wrong))
