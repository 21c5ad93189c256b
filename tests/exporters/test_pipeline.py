"""What run_export promises whatever it builds: refuse early, resume by component, publish last, skip what is done."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mpa_edge.config.library import load_scheme, load_target
from mpa_edge.errors import MpaError, VerificationError
from mpa_edge.exporters import build, pipeline
from mpa_edge.exporters.pipeline import Order, choose_schemes, run_export, wider_margin
from mpa_edge.exporters.publish.manifest import Refusal, finished, is_exported, read_export_manifest
from mpa_edge.exporters.source import Source, open_source
from mpa_edge.exporters.verify.parity import Parity, ParityDetails
from mpa_edge.runs.files import read_json
from mpa_edge.vlm import WEIGHTS
from tests.exporters.hand_made import ACCURACY

SAME = Parity(
    tokens_equal=True,
    image_tokens_equal=True,
    vision_cosine_min=1.0,
    kl=0.0,
    max_abs_logit_diff=0.0,
    greedy_prefix=1.0,
    blank_image_changes=True,
)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    checkpoint = Path(shutil.copytree(WEIGHTS / "student", tmp_path / "student"))
    return open_source(str(checkpoint), out=str(tmp_path / "exports"))


class Factory:
    """Stands in for the makers of weights: writes the component's name, counts, and breaks where it is told to."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.breaks_at: str | None = None
        self.wrong = False
        self.broken: set[str] = set()

    def component(self, shop: Any, scheme: Any, component: str, out: Path) -> list[str]:
        if component == self.breaks_at:
            out.with_name(f".{out.name}.99.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        self.made.append(f"{scheme.name} {component}")
        out.write_bytes(component.encode())
        return [f"{component}: as it is"]

    def verify(self, _: Source, __: Path, scheme: Any, *___: Any) -> tuple[Parity, ParityDetails]:
        if self.wrong or scheme.name in self.broken:
            raise VerificationError("not the same model: token ids differ; export again")
        return SAME, ParityDetails.model_construct()


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> Factory:
    made = Factory()
    monkeypatch.setattr(build, "make_component", made.component)
    monkeypatch.setattr(pipeline, "verify", made.verify)
    monkeypatch.setattr(pipeline, "trace_references", lambda *_: None)
    return made


def order(source: Source, *names: str, **options: Any) -> Order:
    return Order(source, tuple(load_scheme(name) for name in names), **options)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in (".lock", "run.log"))


def test_two_schemes_each_in_its_folder(source: Source, factory: Factory) -> None:
    folders = run_export(order(source, "onnx-int8", "gguf-q8_0"))
    assert [folder.name for folder in folders] == ["onnx-int8", "gguf-q8_0"]
    assert visible(source.exports) == ["gguf-q8_0", "onnx-int8"]
    manifest = read_export_manifest(folders[0])
    assert manifest is not None
    assert manifest.files["vision"].path == "onnx/vision_encoder_int8.onnx"
    assert manifest.notes == ("vision: as it is", "embed: as it is", "decoder: as it is")
    assert {"artifact.json", "config.json", "tokenizer.json"} <= set(manifest.outputs)
    assert not list(folders[0].rglob(".*"))
    report = pipeline.report_of(folders[0])
    assert report["files"]["vision"]["bytes"] == len("vision")
    assert report["parity"] == SAME.model_dump()
    assert report["accuracy"] is None


def test_what_is_done_is_skipped_and_what_changed_is_made_again(source: Source, factory: Factory) -> None:
    run_export(order(source, "onnx-int8"))
    run_export(order(source, "onnx-int8"))
    assert len(factory.made) == 3
    run_export(order(source, "onnx-int8", fresh=True))
    assert len(factory.made) == 6
    (source.exports / "onnx-int8" / "onnx" / "embed_tokens_int8.onnx").write_bytes(b"x")
    run_export(order(source, "onnx-int8"))
    assert len(factory.made) == 9
    run_export(order(source, "onnx-int8", target=load_target("phone")))
    assert len(factory.made) == 12


def test_a_kill_costs_one_component(source: Source, factory: Factory) -> None:
    factory.breaks_at = "decoder"
    with pytest.raises(KeyboardInterrupt):
        run_export(order(source, "onnx-int8"))
    assert not (source.exports / "onnx-int8").exists()
    factory.breaks_at = None
    (folder,) = run_export(order(source, "onnx-int8"))
    assert factory.made == ["onnx-int8 vision", "onnx-int8 embed", "onnx-int8 decoder"]
    assert not list(folder.rglob(".*.tmp"))
    assert visible(source.exports) == ["onnx-int8"]


def test_a_wrong_export_leaves_nothing_and_the_old_one_stays(source: Source, factory: Factory) -> None:
    factory.wrong = True
    with pytest.raises(VerificationError):
        run_export(order(source, "onnx-int8"))
    assert visible(source.exports) == [".parts"]
    factory.wrong = False
    run_export(order(source, "onnx-int8"))
    factory.wrong = True
    with pytest.raises(VerificationError):
        run_export(order(source, "onnx-int8", fresh=True))
    assert read_export_manifest(source.exports / "onnx-int8") is not None


@pytest.mark.parametrize("at", [1, 2])
def test_a_kill_while_it_gets_its_name(
    source: Source, factory: Factory, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The old export is there, or the new one is complete: never neither."""
    run_export(order(source, "onnx-int8"))
    real, calls = os.replace, 0

    def replace(a: Any, b: Any) -> None:
        nonlocal calls
        if Path(a).is_dir():
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        run_export(order(source, "onnx-int8", fresh=True))
    monkeypatch.setattr(os, "replace", real)
    asked = order(source, "onnx-int8")
    run_export(asked)
    assert is_exported(source.exports / "onnx-int8", pipeline.inputs_of(asked, asked.schemes[0]))
    assert len(factory.made) == 6
    assert visible(source.exports) == ["onnx-int8"]


def test_the_target_chooses_and_changes_bits(source: Source) -> None:
    target = load_target("cpu")
    chosen = choose_schemes(source, (), target)
    assert [one.name for one in chosen] == [choice.name for choice in target.schemes]
    assert chosen[0].components == target.schemes[0].components
    named = choose_schemes(source, ("onnx-fp16", "onnx-fp16", "gguf-q8_0"), target)
    assert [one.name for one in named] == ["onnx-fp16", "gguf-q8_0"]


def test_the_first_alternative_that_is_the_same_model_is_kept(
    source: Source, factory: Factory, capsys: pytest.CaptureFixture[str]
) -> None:
    factory.broken = {"onnx-int8"}
    asked = order(source, "onnx-int8", "gguf-q8_0", "onnx-fp16", first=True)
    (folder,) = run_export(asked)
    assert folder.name == "gguf-q8_0"
    assert visible(source.exports) == ["gguf-q8_0", "refused.json"]
    (refusal,) = finished(folder).refused
    assert (refusal.scheme, refusal.accuracy) == ("onnx-int8", None)
    assert f"| onnx-int8 | not measured | {refusal.reason} |" in (folder / "README.md").read_text()
    assert "onnx-int8: refused: not the same model: token ids differ" in capsys.readouterr().err
    made = list(factory.made)
    assert run_export(asked) == [folder]
    assert factory.made == made
    assert "onnx-int8: refused before (not the same model" in capsys.readouterr().err
    run_export(order(source, "onnx-int8", "gguf-q8_0", first=True, fresh=True))
    assert len([one for one in factory.made if one.startswith("onnx-int8")]) == 6


def test_every_reason_is_given_where_no_alternative_passes(source: Source, factory: Factory) -> None:
    factory.broken = {"onnx-int8", "gguf-q8_0"}
    with pytest.raises(VerificationError) as error:
        run_export(order(source, "onnx-int8", "gguf-q8_0", first=True))
    head, *reasons = str(error.value).splitlines()
    assert head == "no scheme passes:"
    assert [line.split(":")[0] for line in reasons] == ["onnx-int8", "gguf-q8_0"]


def test_the_margin_that_would_keep_the_best_scheme_is_named() -> None:
    refused = [
        Refusal(key="", scheme=name, reason="", accuracy=loss and ACCURACY.model_copy(update={"loss_upper": loss}))
        for name, loss in (("onnx-int8", 0.053), ("gguf-q8_0", 0.044), ("onnx-q4", None))
    ]
    assert list(wider_margin(refused)) == [
        "--margin 5 keeps gguf-q8_0; more than these 1000 questions may show that it loses less"
    ]
    assert list(wider_margin(refused[2:])) == []


def test_a_target_falls_back_to_what_the_model_can_take(
    source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(_: Source, scheme: Any, __: Any = None) -> None:
        if scheme.format == "gguf":
            raise MpaError("no GGUF for this one: choose onnx")

    monkeypatch.setattr(pipeline, "check_possible", check)
    phone = load_target("phone")
    chosen = choose_schemes(source, (), phone)
    assert chosen
    assert all(scheme.format != "gguf" for scheme in chosen)
    assert "not possible for this model (no GGUF for this one: choose onnx)" in capsys.readouterr().err
    with pytest.raises(MpaError, match="no GGUF for this one"):
        choose_schemes(source, ("gguf-q8_0",), None)


def test_a_calibrated_scheme_needs_the_images_of_a_run(source: Source) -> None:
    with pytest.raises(MpaError, match="is calibrated on a run's own images, and student is not a run"):
        choose_schemes(source, ("onnx-qdq",), None)


def test_pickles_are_not_opened(source: Source) -> None:
    weights = source.checkpoint / "model.safetensors"
    weights.rename(source.checkpoint / "pytorch_model.bin")
    with pytest.raises(MpaError, match="only pytorch_model.bin, a pickle that can run code"):
        choose_schemes(source, ("onnx-int8",), None)


def test_a_missing_package_is_named(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else 1)
    with pytest.raises(MpaError, match=r"is missing: pip install 'mpa-edge\[gguf\]'"):
        choose_schemes(source, ("gguf-q8_0",), None)


def test_a_full_disk_is_said_before_anything_is_made(
    source: Source, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpa_edge.runs.files.free_bytes", lambda _: 1000)
    with pytest.raises(MpaError, match="disk full at .*: free [0-9]+ MB"):
        run_export(order(source, "onnx-int8"))
    assert factory.made == []


def test_the_threads_and_the_budget_of_a_target_are_in_the_export(source: Source, factory: Factory) -> None:
    pi = load_target("raspberry-pi-5")
    (folder,) = run_export(order(source, "onnx-int8", target=pi))
    artifact = read_json(folder / "artifact.json")
    assert artifact["threads"] == pi.cpu.threads
    assert artifact["context_tokens"] == min(2048, pi.context_tokens)
    manifest = read_export_manifest(folder)
    assert manifest is not None
    assert manifest.target == "raspberry-pi-5"
