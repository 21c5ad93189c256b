"""The task file, as SkyPilot itself reads it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mpa_edge.cloud import job
from mpa_edge.cloud.launch import Rendered, write
from mpa_edge.config.library import parse_yaml
from mpa_edge.errors import MpaError
from tests.cloud.made import rendered, write_recipe
from tests.docs.markdown import ROOT

CANARY = "canary-7d1e-secret-value"
AWKWARD = 'it\'s "my" $HOME & co; {a: b} #1 - größe'
CASES: dict[str, dict[str, Any]] = {
    "drawn": {},
    "awkward": {"images": AWKWARD, "out": f"runs/{AWKWARD}", "options": ("--set", f"title={AWKWARD}", "--limit", "3")},
    "far": {"images": "s3://pictures/of-charts", "image_count": 1000, "limit": 10, "bucket": "gs://kept"},
    "huge": {"images": "r2://pictures", "image_count": 10_000_000, "spot": False, "gpus": "H100:8"},
    "cpu": {"overrides": ("device=cpu",), "bucket": "nebius://kept/a"},
    "words": {"name": "on", "options": ("--set", "title=yes", "--set", "seed=012"), "source": "own.yaml"},
    "secrets": {"secrets": ("MINE", "ON")},
}


@pytest.fixture(scope="module")
def sky() -> Path:
    """An environment with SkyPilot: half a minute where .ci/peers has not been run."""
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([ROOT / ".ci" / "sky"], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return Path(done.stdout.strip()) / "bin" / "python"


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rendered]:
    """Every case, written."""
    place = tmp_path_factory.mktemp("cloud")
    (place / AWKWARD).mkdir()
    Image.new("RGB", (64, 64)).save(place / AWKWARD / "0.png")
    write_recipe(place / "own.yaml", images="{render: {n: 20}}")
    # a checkout whose owner ignores wheels, as many do
    subprocess.run(["git", "init", "-q", str(place)], check=True)
    (place / ".gitignore").write_text("*.whl\n*.yaml\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(job, "build_wheel", lambda: b"a wheel")
        for name in ("HF_TOKEN", "MINE", "ON"):
            patch.setenv(name, CANARY)
        made = {name: rendered(**{"name": name} | changes) for name, changes in CASES.items()}
        for one in made.values():
            write(one)
    return made


@pytest.fixture(scope="module")
def judged(
    sky: Path, cases: dict[str, Rendered], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[Any]]:
    """What SkyPilot makes of all of them: one start of its Python."""
    commands = [one.command for one in cases.values()]
    # those that docs/cloud.md names
    commands += [["sky", "jobs", "queue", "--all"], ["sky", "jobs", "logs", "--name", "x"]]
    commands += [["sky", "jobs", "cancel", "--name", "x", "--graceful"]]
    commands += [["sky", "jobs", "launch", "--no-such-flag", "x"]]
    env = {**os.environ, "HOME": str(tmp_path_factory.mktemp("home")), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    env |= dict.fromkeys(("HF_TOKEN", "MINE", "ON"), CANARY)
    asked = json.dumps({"tasks": [str(one.file) for one in cases.values()], "commands": commands})
    done = subprocess.run(
        [sky, ROOT / "tests" / "cloud" / "sky_judge.py"],
        input=asked,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(cases, answers["tasks"], strict=True)), answers["commands"]


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_skypilot_accepts_the_task(
    name: str, judged: tuple[dict[str, Any], list[Any]], cases: dict[str, Rendered]
) -> None:
    task, sent = judged[0][name], cases[name].job
    assert "error" not in task, task
    assert task["name"] == sent.name
    assert task["files"]["/mpa/kit"] == str(sent.kit)
    assert task["mounts"]["/mpa/out"] == [
        sent.bucket.split("/runs")[0].split("/team")[0].removesuffix("/a"),
        "MOUNT_CACHED",
    ]
    assert task["spot"] is sent.spot
    assert float(task["memory"].rstrip("+")) == sent.needs.memory_gb
    assert task["disk_gb"] == sent.needs.disk_gb
    assert task["recovery"]["strategy"] == "EAGER_NEXT_REGION"
    assert (task["values"], task["filled"]) == ([], sorted(sent.secrets))
    assert all(
        f"{next(iter(gpu))}:{next(iter(gpu.values()))}" in sent.needs.gpus for gpu in task["accelerators"] if gpu
    )
    assert len(task["accelerators"]) == max(1, len(sent.needs.gpus))
    assert task["ordered"] is (len(sent.needs.gpus) > 0)


@pytest.mark.peer
@pytest.mark.slow
def test_images_arrive_as_they_should(judged: tuple[dict[str, Any], list[Any]], cases: dict[str, Rendered]) -> None:
    tasks = judged[0]
    assert tasks["awkward"]["files"]["/mpa/images"].endswith(f"/{AWKWARD}")
    assert tasks["far"]["files"]["/mpa/images"] == "s3://pictures/of-charts"
    assert tasks["huge"]["mounts"]["/mpa/images"] == ["r2://pictures", "MOUNT"]
    assert not [name for task in tasks.values() for name in task["left_out"]]
    assert "/mpa/images" not in {**tasks["drawn"]["files"], **tasks["drawn"]["mounts"]}


@pytest.mark.peer
@pytest.mark.slow
def test_the_sky_program_takes_the_commands(
    judged: tuple[dict[str, Any], list[Any]], cases: dict[str, Rendered]
) -> None:
    *commands, wrong = judged[1]
    assert not [one for one in commands if "error" in one]
    assert "no-such-flag" in wrong["error"]
    launch = commands[list(cases).index("secrets")]["params"]
    assert "MINE" in launch["secret"]
    assert launch["detach_run"] == launch["yes"] == "True"


def test_no_file_holds_a_value(cases: dict[str, Rendered]) -> None:
    for one in cases.values():
        texts = [path.read_bytes() for path in one.job.folder.rglob("*") if path.is_file()]
        assert texts
        assert not [text for text in texts if CANARY.encode() in text]
        assert CANARY not in one.command_line


def test_a_secret_is_not_put_into_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINE", CANARY)
    (tmp_path / "a$MINE").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "a$MINE" / "0.png")
    with pytest.raises(MpaError, match="name of a secret after a"):
        rendered(images="a$MINE", secrets=("MINE",))


def ran(script: str, tmp_path: Path) -> list[str]:
    """Words that `mpa-edge` gets when a shell runs the script."""
    program = tmp_path / "mpa-edge-env" / "bin" / "mpa-edge"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    program.chmod(0o755)
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split("\0")[:-1]


def test_a_shell_hands_over_every_word_as_it_was(cases: dict[str, Rendered], tmp_path: Path) -> None:
    words = ran(parse_yaml(cases["awkward"].text, "task")["run"], tmp_path)
    assert words == [
        "align",
        "minicharts",
        "--images",
        "/mpa/images",
        "--out",
        "/mpa/out/team/runs/awkward",
        "--set",
        f"title={AWKWARD}",
        "--limit",
        "3",
    ]


def test_the_set_up_installs_this_wheel_with_the_tested_versions(cases: dict[str, Rendered], tmp_path: Path) -> None:
    log = tmp_path / "log"
    uv = tmp_path / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> "{log}"\n')
    uv.chmod(0o755)
    setup = parse_yaml(cases["words"].text, "task")["setup"]
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    subprocess.run(["bash", "-c", setup], env=env, check=True, timeout=120)
    made, installed = log.read_text().splitlines()
    assert made.startswith("venv ")
    assert f"{tmp_path}/mpa-edge-env/bin/python --constraint /mpa/kit/constraints.txt" in installed
    (wheel,) = cases["words"].job.kit.glob("*.whl")
    assert installed.endswith(f"mpa-edge[align] @ file:///mpa/kit/{wheel.name}")
    assert (cases["words"].job.kit / "recipe.yaml").read_text().startswith("schema_version")


def test_the_one_command_is_ready_for_a_shell(cases: dict[str, Rendered]) -> None:
    assert tuple(shlex.split(cases["awkward"].command_line)) == cases["awkward"].command
    assert f"# {''.ljust(2)}{cases['awkward'].command_line}" in cases["awkward"].text
