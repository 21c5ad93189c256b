"""References and fingerprints: which model is meant, and whether it is still the same one."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from mpa_edge import vlm
from mpa_edge.config.scheme import Format
from mpa_edge.errors import MpaError
from mpa_edge.vlm import fingerprint, resolve


def test_built_in_models_folders_and_hub_ids_resolve(a_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("nursery:teacher") == str(vlm.WEIGHTS / "teacher")
    assert resolve(str(a_copy)) == str(a_copy)
    monkeypatch.chdir(a_copy.parent)
    assert resolve("./copy") == resolve("copy") == "copy"
    monkeypatch.setenv("HOME", str(a_copy.parent))
    assert resolve("~/copy") == str(a_copy)
    assert resolve("owner/name") == "owner/name"


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("nursery:teach", "no built-in model 'nursery:teach': use nursery:student, nursery:teacher"),
        ("nursery:", "use nursery:student, nursery:teacher"),
        ("./nowhere", "no model './nowhere'"),
        ("/nowhere/at/all", "no model"),
        ("~/nowhere", "no model"),
        ("a/b/c", "a hub id OWNER/NAME"),
        ("teacher", "no model 'teacher'"),
        ("", "has no config.json"),
    ],
)
def test_a_reference_to_nothing_names_what_there_is(reference: str, said: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for ask in (resolve, fingerprint):
        with pytest.raises(MpaError) as caught:
            ask(reference)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_without_torch_the_message_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None; import mpa_edge.vlm as v; v.load('nursery:teacher', name='t')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MachineError: torch is missing: pip install 'mpa-edge[align]'" in done.stderr.splitlines()[-1]


def test_a_folder_without_a_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(MpaError, match="has no config.json: name a folder that holds a transformers checkpoint"):
        resolve(str(tmp_path))


def test_a_fingerprint_changes_with_weights_words_and_template_only(a_copy: Path) -> None:
    before = fingerprint(str(a_copy))
    (a_copy / "notes.md").write_text("seen")
    os.utime(a_copy / "config.json")
    assert fingerprint(str(a_copy)) == before
    seen = {before}
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"):
        content = bytearray((a_copy / name).read_bytes())
        content[-2] ^= 1
        (a_copy / name).write_bytes(content)
        seen.add(fingerprint(str(a_copy)))
    (a_copy / "model-00002.safetensors").write_bytes(b"more")
    assert len(seen | {fingerprint(str(a_copy))}) == 6


def test_the_place_of_a_checkpoint_does_not_matter_and_a_hub_id_is_itself(
    random_checkpoint: Path, a_copy: Path
) -> None:
    assert fingerprint(str(a_copy)) == fingerprint(str(random_checkpoint))
    assert len({fingerprint("a/b"), fingerprint("a/b"), fingerprint("a/c")}) == 2


def test_a_large_file_of_the_same_size_with_other_weights_is_another_model(a_copy: Path, monkeypatch) -> None:
    monkeypatch.setattr(vlm, "HASHED_BYTES", 64_000)
    monkeypatch.setattr(vlm, "SAMPLE_BYTES", 1_000)
    weights = a_copy / "model.safetensors"
    before, content = fingerprint(str(a_copy)), weights.read_bytes()
    middle = len(content) // 2
    for changed in (
        content[:middle] + bytes(byte ^ 1 for byte in content[middle:]),  # training moves them all
        content[:-1] + bytes([content[-1] ^ 1]),
        content + b"\0",
    ):
        weights.write_bytes(changed)
        assert fingerprint(str(a_copy)) != before
    weights.write_bytes(content)
    assert fingerprint(str(a_copy)) == before


def exported(folder: Path, format_: str) -> Path:
    """A folder that says that it is an export, with weights of nothing."""
    (folder / "weights.onnx").write_bytes(b"1")
    artifact = {
        "name": "x",
        "scheme": "x",
        "format": format_,
        "family": "x",
        "model_type": "x",
        "image": {},
        "text": {},
        "files": {"vision": "weights.onnx"},
        "context_tokens": 1,
        "prompt": {"before": "", "after": "", "placeholder": ""},
        "tokens": {"image": "", "image_id": 0, "ends": [], "special": []},
    }
    (folder / "artifact.json").write_text(json.dumps(artifact))
    return folder


def test_an_export_is_known_by_its_weights_and_needs_no_config(tmp_path: Path) -> None:
    folder = exported(tmp_path, "onnx")
    assert resolve(str(folder)) == str(folder)
    seen = {fingerprint(str(folder))}
    for name in ("weights.onnx", "weights.onnx_data", "model.gguf"):
        (folder / name).write_bytes(b"2")
        seen.add(fingerprint(str(folder)))
    assert len(seen) == 4


def test_other_formats_beside_a_checkpoint_are_not_the_checkpoint(a_copy: Path) -> None:
    before = fingerprint(str(a_copy))
    (a_copy / "model.onnx").write_bytes(b"1")
    assert fingerprint(str(a_copy)) == before


@pytest.mark.parametrize("format_", get_args(Format))
def test_an_export_is_loaded_by_the_runtime_of_its_format(
    format_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = vlm.RUNTIMES[format_]
    made = []
    monkeypatch.setattr(importlib.import_module(module), name, lambda *given, **options: made.append((given, options)))
    folder = str(exported(tmp_path, format_))
    vlm.load(folder, name="it", device="cpu", threads=3, batch_size=5, accelerators=("cuda", "cpu"))
    (given, options), *others = made
    assert (given, others) == ((tmp_path,), [])
    asked = {name: value for name, value in options.items() if value is not None}
    assert asked == {"name": "it", "threads": 3, "accelerators": ("cuda", "cpu")}
