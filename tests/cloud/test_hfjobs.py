"""The command line as `hf` itself reads it, and what its script does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from mpa_edge.cloud.launch import find_program
from mpa_edge.errors import MpaError
from tests.cloud.made import rendered

CANARY = "hf_canary-7d1e-secret"
AWKWARD = 'it\'s "my" $HOME & co; (größe)'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (AWKWARD, "a:/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / name / "0.png")
    return tmp_path


@pytest.mark.peer
@pytest.mark.slow
def test_hf_reads_what_is_meant(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--dry-run` asks no server and sends nothing."""
    monkeypatch.setenv("MINE", CANARY)
    made = rendered("hf", images=AWKWARD, secrets=("MINE",), name="charts", gpus="a100-large")
    hf = find_program("hf")
    assert hf is not None
    words = [hf, *made.command[1:3], "--dry-run", *made.command[3:]]
    env = {**os.environ, "HOME": str(place / "home"), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_TOKEN": CANARY}
    assert subprocess.run(words, env=env, capture_output=True, timeout=120).returncode == 0
    words.remove("--json")  # with it a dry run says nothing
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for part in (
        "image python:3.11",
        "command bash /mpa/kit/job.sh",
        "flavor a100-large",
        "timeout 1h",
        "attempts 3",
        "HF_TOKEN=***",
        "MINE=***",
        "name=charts",
        f"{made.job.kit}:/mpa/kit:ro",
        f"{place / AWKWARD}:/mpa/images:ro",
    ):
        assert part in said, f"{part} is not in {said}"
    assert CANARY not in done.stdout + done.stderr


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("verb", ["inspect", "logs", "cancel"])
def test_hf_knows_the_commands_of_the_documentation(verb: str) -> None:
    words = [str(find_program("hf")), "jobs", verb, "6870aa", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_script_hands_over_every_word_as_it_was(place: Path) -> None:
    log = place / "log"
    for name in ("home/.local/bin/uv", "home/mpa-edge-env/bin/mpa-edge"):
        path = place / name
        path.parent.mkdir(parents=True)
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "${{0##*/}}" "$@" >> "{log}"\n')
        path.chmod(0o755)
    script = place / "job.sh"
    script.write_text(rendered("hf", images=AWKWARD, options=("--set", f"title={AWKWARD}")).text)
    env = {"HOME": str(place / "home"), "PATH": "/usr/bin:/bin"}
    subprocess.run(["bash", str(script)], env=env, check=True, timeout=120)
    words = log.read_text().split("mpa-edge\n")[-1].splitlines()
    assert words == [
        "align",
        "minicharts",
        "--images",
        "/mpa/images",
        "--out",
        "hf://buckets/me/kept/runs/minicharts",
        "--set",
        f"title={AWKWARD}",
    ]


def test_images_of_the_hub_are_mounted_where_they_are(place: Path) -> None:
    made = rendered("hf", images="hf://datasets/me/charts", image_count=1000)
    assert "hf://datasets/me/charts:/mpa/images:ro" in made.command


def test_a_path_that_hf_would_cut_is_refused(place: Path) -> None:
    with pytest.raises(MpaError, match="colon before a slash"):
        rendered("hf", images="a:/b")
