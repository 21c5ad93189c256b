"""Upload through the real `huggingface_hub` to a hub on this machine, each time in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpa_edge.config.library import load_scheme
from mpa_edge.errors import MpaError
from mpa_edge.exporters.publish.hub import push, to_upload
from tests.exporters import fake_hub, hand_made
from tests.exporters.fake_hub import TOKEN, Hub

PUSH = """
import sys
from pathlib import Path
from mpa_edge.errors import MpaError
from mpa_edge.exporters.publish.hub import push
try:
    print(push(Path(sys.argv[1]), sys.argv[2], private=True))
except MpaError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    hub, server = fake_hub.start()
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hand_made.export(tmp_path / "onnx-int8", load_scheme("onnx-int8"))


def run(folder: Path, repo: str, endpoint: str, home: Path, token: str = TOKEN, **more: str):
    """`push` with nothing in its environment that this test did not put there."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    environment = {
        **kept,
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **more,
    }
    words = [sys.executable, "-c", PUSH, str(folder), repo]
    root = Path(__file__).parents[3]
    return subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=120)


def test_what_the_manifest_names_arrives_and_nothing_else(hub: Hub, folder: Path, tmp_path: Path) -> None:
    (folder / ".env").write_text(TOKEN)
    (folder / "notes.txt").write_text("private")
    (folder / "onnx" / ".hidden.onnx").write_bytes(b"x")
    done = run(folder, "me/mine", hub.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.url}/me/mine\n"
    assert hub.repos["me/mine"] is True
    names = [
        "README.md",
        "artifact.json",
        "manifest.json",
        "onnx/decoder_model_merged_quantized.onnx",
        "onnx/embed_tokens_int8.onnx",
        "onnx/vision_encoder_int8.onnx",
    ]
    assert sorted(hub.files) == names
    assert hub.files == {name: (folder / name).read_bytes() for name in names}
    assert any(line.endswith("/info/lfs/objects/batch") for line in hub.asked)


def test_the_token_is_in_no_output_and_in_no_file(hub: Hub, folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    loud = {"HF_HUB_VERBOSITY": "debug", "HF_DEBUG": "1"}
    for repo in ("me/mine", "me/denied", "me/full"):
        done = run(folder, repo, hub.url, home, **loud)
        assert TOKEN not in done.stdout + done.stderr
        assert "hf_canary" not in done.stdout + done.stderr
    files = [path for path in (*home.rglob("*"), *folder.rglob("*")) if path.is_file()]
    assert files
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        ("me/mine", "hf_wrong", "the hub does not know the token: set HF_TOKEN"),
        ("me/denied", TOKEN, "the token may not write to 'me/denied': use a name of your own"),
        ("me/missing", TOKEN, "no repository 'me/missing' that this token can see"),
        ("not a name", TOKEN, "'not a name' is not a repository name: write OWNER/NAME"),
        ("me/mine", "", "no token for the hub: set HF_TOKEN"),
    ],
)
def test_a_refusal_is_one_line_with_the_fix(
    hub: Hub, folder: Path, tmp_path: Path, repo: str, token: str, words: str
) -> None:
    done = run(folder, repo, hub.url, tmp_path, token)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {words}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("repo", "endpoint", "words"),
    [
        ("me/broken", None, "the hub has a problem (status 500): rerun later"),
        ("me/mine", "http://127.0.0.1:9", "cannot reach the hub ("),
    ],
)
def test_trouble_is_one_line_with_the_fix(
    hub: Hub, folder: Path, tmp_path: Path, repo: str, endpoint: str | None, words: str
) -> None:
    done = run(folder, repo, endpoint or hub.url, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {words}")
    assert done.stderr.count("\n") == 1


def test_a_stored_token_is_not_used(hub: Hub, folder: Path, tmp_path: Path) -> None:
    stored = tmp_path / "hf" / "token"
    stored.parent.mkdir()
    stored.write_text(TOKEN)
    before = len(hub.asked)
    done = run(folder, "me/mine", hub.url, tmp_path, token="")
    assert "no token for the hub" in done.stderr
    assert len(hub.asked) == before


def test_only_a_finished_and_unchanged_export_is_uploaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    graph = folder / "onnx" / "vision_encoder_int8.onnx"
    good = graph.read_bytes()
    assert "onnx/vision_encoder_int8.onnx" in to_upload(folder)
    graph.write_bytes(good[:-1] + b"?")
    with pytest.raises(MpaError, match="is not the file that was verified"):
        push(folder, "me/mine")
    graph.unlink()
    with pytest.raises(MpaError, match="is missing: rerun mpa-edge export"):
        push(folder, "me/mine")
    outside = folder.parent / "outside.onnx"
    outside.write_bytes(good)
    graph.symlink_to(outside)
    with pytest.raises(MpaError, match="leads out of"):
        push(folder, "me/mine")
    (folder / "manifest.json").unlink()
    with pytest.raises(MpaError, match="is not a finished export"):
        push(folder, "me/mine")
