"""Export under fire: killed, interrupted, out of room, held by another, with damaged or moved files."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mpa_edge.exporters.publish.manifest import ExportManifest, is_exported, read_export_manifest
from mpa_edge.runs.files import read_json
from mpa_edge.runs.lock import LOCK, run_lock
from mpa_edge.vlm import WEIGHTS

pytestmark = pytest.mark.slow

SCHEMES = ("onnx-int8", "gguf-q8_0")
KILLS = 5
SEED = 20_261_123
INTERRUPTED = "interrupted: rerun to resume"


def command(out: Path, *schemes: str, source: str = "nursery:student") -> tuple[str, ...]:
    """The export of these tests."""
    named = [word for scheme in schemes or SCHEMES for word in ("--as", scheme)]
    return ("export", source, *named, "--threads", "1", "--out", str(out))


@dataclass(frozen=True)
class Finished:
    """An export that nothing disturbed. Copy it before changing anything."""

    folder: Path
    seconds: float
    """Wall seconds, on this machine and with what else runs on it."""

    def copy(self, to: Path) -> Path:
        return Path(shutil.copytree(self.folder, to))


@pytest.fixture(scope="session")
def exported(forks, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out, started = tmp_path_factory.mktemp("exported") / "exports", time.monotonic()
    ended = forks(*command(out))
    assert ended.rc == 0, ended.stderr
    return Finished(out, time.monotonic() - started)


def manifest_of(folder: Path) -> ExportManifest:
    found = read_export_manifest(folder)
    assert found is not None, folder
    return found


def hashes(folder: Path) -> dict[str, str]:
    """Of every file of an export."""
    return {path: file.sha256 for path, file in manifest_of(folder).outputs.items()}


def content(exports: Path) -> dict[str, tuple[dict[str, str], dict]]:
    """Every export's files, and how near it is to its checkpoint."""
    return {name: (hashes(exports / name), manifest_of(exports / name).parity) for name in SCHEMES}


def unfinished(exports: Path) -> list[str]:
    """Folders under a final name that are not a whole export."""
    folders = [path for path in exports.glob("*") if path.is_dir() and not path.name.startswith(".")]
    return [path.name for path in folders if not is_exported(path, (read_json(path / "manifest.json") or {})["inputs"])]


def leftovers(exports: Path) -> list[str]:
    return [str(path.relative_to(exports)) for path in exports.rglob(".*") if path.name != LOCK]


# --- ended in the middle ----------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_kills_at_random_moments(forks, exported: Finished, tmp_path: Path) -> None:
    """The same bytes as an undisturbed export, never half an export under a final name, nobody left at work."""
    rng, out, killed, within_s = random.Random(SEED), tmp_path / "exports", 0, 1.6 * exported.seconds / KILLS
    before = set(forks.temporary.iterdir())
    while killed < KILLS:
        ended = forks.kill(*command(out), run=out, stage=None, after_s=rng.uniform(0.1, within_s))
        assert ended.rc in (0, -signal.SIGKILL), ended.stderr
        assert ended.orphans == 0
        assert unfinished(out) == []
        killed += ended.rc != 0
        if ended.rc == 0:  # the machine was slower when the time was taken: from the start, and sooner
            shutil.rmtree(out)
            within_s /= 2
    ended = forks(*command(out))
    assert ended.rc == 0, ended.stderr
    assert content(out) == content(exported.folder)
    assert leftovers(out) == []
    assert set(forks.temporary.iterdir()) == before


@pytest.mark.timeout(300)
@pytest.mark.parametrize("share", [0.1, 0.7])
def test_ctrl_c_ends_in_one_line_and_nobody_works_on(forks, exported: Finished, tmp_path: Path, share: float) -> None:
    out = tmp_path / "exports"
    for part in (1.0, 0.5, 0.25):  # a busy machine may have made the measured export slow, and this one ends before
        ended = forks(*command(out), after_s=part * share * exported.seconds, sig=signal.SIGINT)
        if ended.rc:
            break
        shutil.rmtree(out)
    assert ended.rc == 130, ended.stderr
    assert ended.last == INTERRUPTED
    assert "Traceback" not in ended.stderr
    assert ended.orphans == 0
    assert unfinished(out) == []


# bytes: more than the small files and less than a component of the export
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("scheme", "room_bytes"), [("onnx-int8", 1_000_000), ("gguf-q8_0", 1_000_000), ("gguf-q8_0", 2_500_000)]
)
def test_a_full_disk(forks, tmp_path: Path, scheme: str, room_bytes: int) -> None:
    """A limit on the size of files makes every write fail half-way, as a full disk does."""
    out = tmp_path / "exports"
    ended = forks(*command(out, scheme), max_file_bytes=room_bytes)
    assert ended.rc == 1, ended.stderr
    assert ended.last.startswith("error: disk full at "), ended.stderr
    assert ended.last.endswith("MB, then rerun; nothing is lost")
    assert "Traceback" not in ended.stderr
    assert not (out / scheme).exists()
    assert [path for path in out.rglob("*") if path.name.endswith(".tmp") or path.stat().st_size >= room_bytes] == []


# --- together with others ---------------------------------------------------------------------------------------------


def test_one_process_at_a_time(forks, tmp_path: Path) -> None:
    out = tmp_path / "exports"
    with run_lock(out):
        ended = forks(*command(out))
    assert ended.rc == 1
    assert ended.last == (
        f"error: {out} is in use by process {os.getpid()}: wait for it, stop it, or choose another --out"
    )


# --- damaged files ----------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One byte in the middle, the size as before."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def nonsense(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


@pytest.mark.timeout(300)
def test_a_damaged_part_is_made_again(forks, exported: Finished, tmp_path: Path) -> None:
    """What several schemes are made of: whole when the export was killed, damaged when it goes on."""
    out = tmp_path / "exports"
    ended = forks.kill(*command(out, "gguf-q8_0"), run=out, stage=".parts/.made.json", after_s=0)
    assert ended.rc == -signal.SIGKILL, ended.stderr
    part = out / ".parts" / "gguf" / "mmproj-q8_0.gguf"
    flip(part)
    again = forks(*command(out, "gguf-q8_0"))
    assert again.rc == 0, again.stderr
    assert hashes(out / "gguf-q8_0") == hashes(exported.folder / "gguf-q8_0")
    assert leftovers(out) == []


@pytest.mark.timeout(300)
def test_a_damaged_file_of_a_finished_export_is_made_again(forks, exported: Finished, tmp_path: Path) -> None:
    out = exported.copy(tmp_path / "exports")
    flip(out / "gguf-q8_0" / "model-q8_0.gguf")
    ended = forks(*command(out))
    assert ended.rc == 0, ended.stderr
    assert "onnx-int8: done before, nothing changed" in ended.stderr
    assert "gguf-q8_0: made again because of changed files" in ended.stderr
    assert content(out) == content(exported.folder)
    assert leftovers(out) == []


BAD = [
    ("onnx-int8", "onnx/vision_encoder_int8.onnx", cut),
    ("onnx-int8", "onnx/decoder_model_merged_quantized.onnx", nonsense),
    ("onnx-int8", "onnx/embed_tokens_int8.onnx", empty),
    ("onnx-int8", "onnx/embed_tokens_int8.onnx", Path.unlink),
    ("onnx-int8", "tokenizer.json", cut),
    ("onnx-int8", "tokenizer.json", Path.unlink),
    ("onnx-int8", "artifact.json", cut),
    ("gguf-q8_0", "model-q8_0.gguf", cut),
    ("gguf-q8_0", "model-q8_0.gguf", empty),
    ("gguf-q8_0", "mmproj-q8_0.gguf", cut),
    ("gguf-q8_0", "mmproj-q8_0.gguf", nonsense),
    ("gguf-q8_0", "mmproj-q8_0.gguf", Path.unlink),
]


@pytest.mark.parametrize(("scheme", "name", "damage"), BAD)
def test_a_damaged_export_is_refused_in_one_line(
    forks, exported: Finished, tmp_path: Path, scheme: str, name: str, damage: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(exported.folder / scheme, tmp_path / "export"))
    damage(folder / name)
    ended = forks("evaluate", str(folder), "--limit", "4", "--set", "threads=1")
    assert ended.rc == 1, ended.stderr
    assert ended.stdout == ""
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    assert Path(name).name in lines[0]
    assert "unexpected" not in lines[0]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", cut),
        ("model.safetensors", nonsense),
        ("config.json", cut),
        ("config.json", empty),
        ("tokenizer.json", cut),
        ("tokenizer.json", Path.unlink),
        ("processor_config.json", cut),
    ],
)
@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_a_damaged_checkpoint_is_refused_in_one_line(
    forks, tmp_path: Path, verb: str, name: str, damage: Callable[[Path], None]
) -> None:
    checkpoint = Path(shutil.copytree(WEIGHTS / "student", tmp_path / "model"))
    damage(checkpoint / name)
    asked = command(tmp_path / "exports", "onnx-int8", source=str(checkpoint))
    ended = forks(*asked if verb == "export" else ("evaluate", str(checkpoint), "--limit", "4"))
    assert ended.rc == 1, ended.stderr
    lines = [line for line in ended.stderr.strip().splitlines() if not line.startswith("onnx-int8: ")]
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    assert "unexpected" not in lines[0]
    assert not (tmp_path / "exports" / "onnx-int8").exists()


# --- elsewhere --------------------------------------------------------------------------------------------------------


def accuracy(forks, folder: Path) -> float:
    ended = forks("evaluate", str(folder), "--limit", "8", "--set", "threads=1", "--json")
    assert ended.rc == 0, ended.stderr
    return json.loads(ended.stdout)["accuracy"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_copy_elsewhere_answers_the_same_and_needs_no_right_to_write(
    forks, exported: Finished, tmp_path: Path, scheme: str
) -> None:
    """In a folder whose name has blanks, quotes and letters beyond ASCII, as a share or a stick may be."""
    copied = Path(shutil.copytree(exported.folder / scheme, tmp_path / "my 'best' \"modèle\" 模型 & $(x)"))
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    for path in (copied, *before):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert accuracy(forks, copied) == accuracy(forks, exported.folder / scheme)
        assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before
    finally:
        for path in (copied, *before):
            path.chmod(0o755)


@pytest.mark.timeout(300)
def test_odd_names_of_source_and_destination(forks, exported: Finished, tmp_path: Path) -> None:
    source = Path(shutil.copytree(WEIGHTS / "student", tmp_path / 'it\'s a "student" é模'))
    out = tmp_path / "to here; 'now' ü"
    ended = forks(*command(out, "gguf-q8_0", source=str(source)))
    assert ended.rc == 0, ended.stderr
    weights = "model-q8_0.gguf"
    found, expected = (manifest_of(path / "gguf-q8_0").outputs for path in (out, exported.folder))
    assert found[weights].bytes == pytest.approx(expected[weights].bytes, abs=4096)
