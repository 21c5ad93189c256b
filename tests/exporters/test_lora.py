"""`--as gguf-lora`: an adapter beside a base that is on the device already."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path

import pytest
import torch
import xllamacpp
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mpa_edge.cli.main import main
from mpa_edge.config.library import load_recipe
from mpa_edge.errors import MpaError, VerificationError
from mpa_edge.exporters import lora
from mpa_edge.exporters.gguf import lora as writer
from mpa_edge.exporters.gguf.convert import convert
from mpa_edge.exporters.pipeline import Order
from mpa_edge.exporters.source import Source, open_source
from mpa_edge.runs.files import make_folder, read_json, write_json
from mpa_edge.runs.manifest import FOLDERS, finish
from mpa_edge.stages.run import Run, remember
from mpa_edge.vlm import WEIGHTS, fingerprint
from tests.cli.test_examples import own_adapter
from tests.exporters import adapters
from tests.exporters.gguf.made import converted
from tests.families import zoo

KIND = "qwen2_5_vl"
QUESTION = "What is the value of the largest bar?"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the language model, as ms-swift saves it, with rsLoRA."""
    folder = tmp_path_factory.mktemp("lora") / "mine"
    adapters.make("ms-swift", folder)
    config = read_json(folder / adapters.CONFIG)
    write_json(folder / adapters.CONFIG, config | {"base_model_name_or_path": str(zoo.checkpoint(KIND))})
    return folder


@pytest.fixture
def exported(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the command wrote."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["export", str(made), "--as", "gguf-lora", "--threads", "1", "--json"])
    assert done.exit_code == 0, done.output
    [report] = json.loads(done.stdout)["exports"]
    assert report["parity"]["greedy_prefix"] == 1.0
    assert report["base_sha256"] == fingerprint(str(zoo.checkpoint(KIND)))
    return tmp_path / report["path"]


def greedy(language: Path, adapter: Path | None = None) -> list[int]:
    """Tokens of another client, behind a question without an image."""
    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port = str(language), ["127.0.0.1"], 0
    params.n_ctx, params.n_parallel, params.n_batch, params.n_ubatch, params.warmup = 256, 1, 256, 256, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if adapter:
        loaded = xllamacpp.CommonAdapterLoraInfo()
        loaded.path, loaded.scale = str(adapter), 1.0
        params.lora_adapters = [loaded]
    server = xllamacpp.Server(params)
    asked = {"prompt": QUESTION, "n_predict": 16, "temperature": 0.0, "return_tokens": True, "cache_prompt": False}
    request = urllib.request.Request(
        f"{server.listening_address}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        return list(json.load(reply)["tokens"])


@pytest.mark.peer
def test_a_server_with_base_and_adapter_answers_as_the_merged_model(
    exported: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a rerun makes nothing again; what is in the folder is a few KB, and no model."""
    merged = open_source(str(made))
    convert(merged, "language", tmp_path / "merged.gguf")
    expected = greedy(tmp_path / "merged.gguf")
    base = converted(KIND, "language")
    assert greedy(base, exported / lora.FILE) == expected != greedy(base)
    assert {path.name for path in exported.iterdir()} == {lora.FILE, "README.md", "manifest.json"}
    assert (exported / lora.FILE).stat().st_size < 100_000
    assert f"--lora {lora.FILE}" in (exported / "README.md").read_text()
    before = (exported / "manifest.json").stat().st_mtime_ns
    assert lora.export_adapter(Order(merged, (), threads=1)).resolve() == exported.resolve()
    assert (exported / "manifest.json").stat().st_mtime_ns == before
    assert "done before, nothing changed" in capsys.readouterr().err


@pytest.mark.peer
def test_a_wrong_scale_does_not_pass_the_gate(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    right = writer._alpha
    monkeypatch.setattr(writer, "_alpha", lambda *arguments: 1.2 * right(*arguments))
    with pytest.raises(VerificationError, match="gguf-lora of mine is not the model it was made from"):
        lora.export_adapter(Order(open_source(str(made)), (), threads=1))
    assert not [path.name for path in (tmp_path / "runs" / "mine" / "exports").iterdir() if "lora" in path.name]


REFUSED = {
    "trl": r"vision_model\..* was tuned, and llama.cpp applies an adapter to the language model only",
    "2U1": r"merger\..* was tuned as a whole",
    "tied head": r"embeddings or biases were tuned, and llama.cpp applies an adapter to matrices of layers only",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_cannot_apply_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    adapters.make(name, tmp_path / "mine")
    pickled, weights = (tmp_path / "mine" / file for file in ("non_lora_state_dict.bin", adapters.WEIGHTS))
    if pickled.is_file():
        save_file(torch.load(pickled), pickled.with_suffix(".safetensors"))
    # peft saves the base's tied matrix as well
    save_file({key: tensor for key, tensor in load_file(weights).items() if "lora_" in key}, weights)
    source = open_source(str(tmp_path / "mine"), base=str(adapters.checkpoint(name)), merge=False)
    with pytest.raises(MpaError, match=REFUSED[name] + ".*: export the merged model instead") as caught:
        lora.adapter_of(source)
    assert "\n" not in str(caught.value)


def test_dora_and_models_without_an_adapter_are_refused(made: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    for path in made.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    write_json(own / adapters.CONFIG, read_json(own / adapters.CONFIG) | {"use_dora": True})
    with pytest.raises(MpaError, match="it is a DoRA adapter"):
        lora.adapter_of(open_source(str(own), merge=False))
    with pytest.raises(MpaError, match="has no LoRA adapter beside its base: --as gguf-lora takes a run"):
        lora.adapter_of(Source("plain", zoo.checkpoint(KIND), tmp_path))


@pytest.mark.parametrize("more", [("--as", "gguf-q8_0"), ("--client", "ollama"), ("--accuracy", "5"), ("--choose",)])
def test_it_stands_alone(more: tuple[str, ...], made: Path) -> None:
    done = CliRunner().invoke(main, ["export", str(made), "--as", "gguf-lora", *more])
    assert done.exit_code == 2
    assert "--as gguf-lora makes an adapter and no model: give it alone" in done.output


def test_a_dry_run_says_the_size(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["export", str(made), "--as", "gguf-lora", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "gguf-lora: about 0.02 MB, in runs/mine/exports/gguf-lora" in done.output
    assert not list(tmp_path.iterdir())


def test_a_run_has_an_adapter_for_its_student(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    remember(Run(make_folder(run), load_recipe("minicharts")))
    merged = Path(shutil.copytree(WEIGHTS / "student", run / FOLDERS["merge"]))
    finish(merged, "merge", inputs={"level": "", "student": "", "config": ""}, config="", seed=0, counts={})
    with pytest.raises(MpaError, match="has no LoRA adapter"):  # every weight was trained
        lora.adapter_of(open_source(str(run)))
    own_adapter(run / FOLDERS["level"] / "adapter")
    base, found = lora.adapter_of(open_source(str(run)))
    assert base.checkpoint == WEIGHTS / "student"
    assert found.lora
