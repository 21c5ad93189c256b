"""Adapters of other trainers: merged, they are what peft makes of them; what cannot be merged is refused in a line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mpa_edge.cli.main import main
from mpa_edge.errors import MpaError
from mpa_edge.exporters import adapter as incoming
from mpa_edge.exporters.source import open_source
from mpa_edge.runs.files import read_json, write_json
from mpa_edge.vlm import load
from mpa_edge.vlm.transformers.checkpoint import load_model, load_processor
from tests.exporters import adapters
from tests.exporters.adapters import CONFIG, WEIGHTS
from tests.families import zoo

PICKLE = "non_lora_state_dict.bin"


def converted(folder: Path) -> None:
    """Run the command that the refusal of a pickle names."""
    with pytest.raises(MpaError, match=rf"{PICKLE}' is a pickle, which can run code") as caught:
        open_source(str(folder))
    command = str(caught.value).partition(", python -c ")[2].strip('"')
    subprocess.run([sys.executable, "-c", command], cwd=folder, check=True)


@cache
def logits_of(folder: Path, base: Path) -> torch.Tensor:
    """(1, tokens, vocabulary) of a checkpoint, on the probe of its base."""
    with torch.no_grad():
        return load_model(str(folder), "cpu")(**incoming.probe_inputs(load_processor(str(base)))).logits


@pytest.mark.parametrize("name", adapters.MADE)
def test_a_merged_adapter_answers_as_peft_does(name: str, tmp_path: Path) -> None:
    folder, base = tmp_path / "my adapter ä", adapters.checkpoint(name)
    expected = adapters.make(name, folder)
    if (folder / PICKLE).is_file():
        converted(folder)
    out = tmp_path / "merged"
    assert incoming._merge(folder, base, out, tmp_path / "staged") <= 1e-4 * float(expected.abs().max())
    logits, plain = logits_of(out, base), logits_of(base, base)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert (plain - expected).abs().max() > 0.01
    taught = (folder / "chat_template.jinja").is_file()
    template = load_processor(str(out)).chat_template
    assert (template == load_processor(str(base)).chat_template) is not taught
    assert not [path for path in out.iterdir() if path.name.startswith("adapter") or path.suffix == ".bin"]


@pytest.fixture
def plain(tmp_path, monkeypatch) -> Path:
    """An adapter, in an empty folder in which the commands run."""
    monkeypatch.chdir(tmp_path)
    adapters.make("trl", tmp_path / "mine")
    return tmp_path / "mine"


def test_merged_once_and_again_when_it_changes(plain, tmp_path, capsys) -> None:
    first = open_source("mine")
    assert first.checkpoint == Path("runs/mine/merged")
    assert first.exports == Path("runs/mine/exports")
    assert first.name == "mine"
    written = (first.checkpoint / "model.safetensors").stat().st_mtime_ns
    assert open_source("mine").fingerprint == first.fingerprint
    assert (first.checkpoint / "model.safetensors").stat().st_mtime_ns == written
    assert "merged before, nothing changed" in capsys.readouterr().err
    held = load_file(plain / WEIGHTS)
    save_file({name: tensor * 2 for name, tensor in held.items()}, plain / WEIGHTS, {"format": "pt"})
    assert open_source("mine").fingerprint != first.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "runs"}


@pytest.mark.peer
def test_an_adapter_is_exported_by_its_command(plain, tmp_path) -> None:
    arguments = ["export", "mine", "--as", "gguf-f16", "--threads", "1", "--json"]
    dry = CliRunner().invoke(main, [*arguments, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert not (tmp_path / "runs").exists()
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    [made] = json.loads(done.stdout)["exports"]
    assert made["path"] == "runs/mine/exports/gguf-f16"
    assert made["parity"]["greedy_prefix"] == 1.0


def other_base(folder: Path) -> None:
    config = read_json(folder / CONFIG)
    write_json(folder / CONFIG, config | {"base_model_name_or_path": "/nowhere/else"})


def no_base(folder: Path) -> None:
    write_json(folder / CONFIG, read_json(folder / CONFIG) | {"base_model_name_or_path": None})


def quantized_base(folder: Path) -> None:
    base = shutil.copytree(zoo.checkpoint("idefics3"), folder.parent / "base-bnb-4bit")
    config = read_json(base / "config.json") | {"quantization_config": {"quant_method": "bitsandbytes"}}
    write_json(base / "config.json", config)
    write_json(folder / CONFIG, read_json(folder / CONFIG) | {"base_model_name_or_path": str(base)})


def another_family(folder: Path) -> None:
    named = str(zoo.checkpoint("qwen2_vl"))
    write_json(folder / CONFIG, read_json(folder / CONFIG) | {"base_model_name_or_path": named})


def another_size(folder: Path) -> None:
    named = str(zoo.checkpoint("idefics3", hidden=128))
    write_json(folder / CONFIG, read_json(folder / CONFIG) | {"base_model_name_or_path": named})


def as_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def ia3(folder: Path) -> None:
    write_json(folder / CONFIG, read_json(folder / CONFIG) | {"peft_type": "IA3"})


def pissa(folder: Path) -> None:
    write_json(folder / CONFIG, read_json(folder / CONFIG) | {"init_lora_weights": "pissa_niter_4"})


def empty(folder: Path) -> None:
    save_file({}, folder / WEIGHTS)


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def linked(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to("../elsewhere")


def no_json(folder: Path) -> None:
    (folder / CONFIG).write_text("{")


def rank_of_words(folder: Path) -> None:
    write_json(folder / CONFIG, read_json(folder / CONFIG) | {"r": "x"})


def half_a_pair(folder: Path) -> None:
    save_file(dict(sorted(load_file(folder / WEIGHTS).items())[1:]), folder / WEIGHTS)


def new_tokens(folder: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_tokens(["<price>"])
    processor.save_pretrained(folder)


REFUSED = {
    other_base: r"is an adapter of '/nowhere/else', which is not here: name it with --base MODEL",
    no_base: r"names no base model: name it with --base MODEL",
    quantized_base: r"quantized already \(bitsandbytes.*use the checkpoint that it was made from.*with --base MODEL",
    another_family: r"does not fit its base, which has no .*text_model.*: name the model .* --base MODEL",
    another_size: r"does not fit its base: .* is \(.*\) there; name the model .* --base MODEL",
    as_pickle: r"adapter_model.bin' is a pickle, which can run code: convert it where you trust it",
    ia3: r"of type IA3, and only LoRA is merged here: merge it with peft",
    pissa: r"began as pissa_niter_4, which changes the base as well: save it as a plain LoRA",
    empty: r"holds no LoRA weights: copy the adapter again",
    cut: r"adapter_model.safetensors' is damaged",
    no_weights: r"has no adapter_model.safetensors: copy the adapter again",
    linked: r"adapter_model.safetensors' leads out of the checkpoint's folder",
    no_json: r"adapter_config.json' is no JSON",
    rank_of_words: r"adapter_config.json' says r x, which is no number",
    new_tokens: r"has \d+ tokens and its base only \d+: resize the base's embeddings as in the training",
    half_a_pair: r"1 adapter tensors do not fit the student.*--base MODEL",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_cannot_be_merged_is_refused_in_one_line(change, plain) -> None:
    change(plain)
    with pytest.raises(MpaError, match=REFUSED[change]) as caught:
        open_source("mine")
    assert "\n" not in str(caught.value)
    assert not list(plain.parent.rglob("runs/mine/merged/model.safetensors"))
    os.chdir("/")


def test_base_is_for_adapters_only(plain) -> None:
    with pytest.raises(MpaError, match="is no adapter: leave out --base"):
        open_source(str(zoo.checkpoint("idefics3")), base="nursery:student")


def test_the_named_base_is_used(plain) -> None:
    other_base(plain)
    assert open_source("mine", base=str(zoo.checkpoint("idefics3")), merge=False).checkpoint == zoo.checkpoint(
        "idefics3"
    )


def test_a_run_of_the_same_name_is_left_alone(plain, tmp_path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    write_json(tmp_path / "runs" / "mine" / "run.json", {})
    with pytest.raises(MpaError, match="runs/mine is a run of its own: choose another folder with --out"):
        open_source("mine")


def test_elsewhere_an_adapter_is_no_model(plain) -> None:
    with pytest.raises(MpaError, match=r"mpa-edge export .*mine merges it into its base, name runs/mine/merged then"):
        load(str(plain), name="x", device="cpu", threads=1)
