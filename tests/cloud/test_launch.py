"""`mpa-edge align --cloud` as a user types it: programs on PATH are fakes that write down how they were called."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mpa_edge.cli.main import exit_code
from mpa_edge.cloud import job, launch
from mpa_edge.config.library import load_recipe
from mpa_edge.errors import MpaError
from tests.cloud.fakes import Fake, install, path_without
from tests.cloud.made import job as made_job
from tests.cloud.made import write_recipe
from tests.docs.markdown import ROOT

CANARIES = {
    "HF_TOKEN": "hf_canary_0001",
    "OPENAI_API_KEY": "sk-canary-0002",
    "AWS_ACCESS_KEY_ID": "AKIACANARY0003",
    "AWS_SECRET_ACCESS_KEY": "aws/canary+0004",
    "MY_LICENCE": "canary 0005 of mine",
}
CANARY = "canary"
SKY = ("align", "--cloud", "--bucket", "s3://kept/runs")
HF = ("align", "--hf-jobs", "--bucket", "hf://buckets/me/kept")
AWKWARD = 'it\'s "my" $HOME & co;'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, canaries in the environment, no sky or hf."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(job, "build_wheel", lambda: b"a wheel")
    monkeypatch.setattr(launch, "BESIDE", tmp_path / "bin")
    monkeypatch.setenv("PATH", path_without("sky", "hf"))
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "work"


def fake(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = install(name, place.parent / "bin", place.parent / "records")
    monkeypatch.setenv("PATH", f"{place.parent / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return made


@pytest.fixture
def sky(place: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return fake("sky", place, monkeypatch)


@pytest.fixture
def hf(place: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = fake("hf", place, monkeypatch)
    made.answer(run={"out": '{"id": "6870aa", "name": "minicharts", "url": "https://hub.example/jobs/6870aa"}\n'})
    return made


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(folder / "0.png")
    return folder


def written(place: Path) -> str:
    """All that lies in the working folder, as one text."""
    return "\n".join(path.read_text(errors="replace") for path in place.rglob("*") if path.is_file())


def test_sky_is_called_once_with_names_and_the_environment(
    place: Path, sky: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(place / AWKWARD)
    words = (*SKY, "--images", AWKWARD, "--out", f"runs/{AWKWARD}", "--set", "level.rank=8", "--limit", "1")
    assert exit_code([*words, "--secret", "MY_LICENCE"]) == 0
    said = capsys.readouterr()
    (call,) = sky.calls()
    file = place / "runs" / AWKWARD / "cloud" / "task.yaml"
    assert call["argv"] == [
        "jobs",
        "launch",
        "--name",
        "minicharts",
        "--detach-run",
        "--yes",
        "--secret",
        "HF_TOKEN",
        "--secret",
        "MY_LICENCE",
        str(file),
    ]
    assert call["stdin"] == ""
    assert CANARIES.items() <= call["env"].items()
    assert "align minicharts --images /mpa/images" in file.read_text()
    assert "--set level.rank=8 --limit 1" in file.read_text()
    assert said.out.index("USD") < said.out.index("launched minicharts")
    assert CANARY not in written(place) + said.out + said.err


def test_hf_is_called_once_with_names_and_the_environment(
    place: Path, hf: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = pictures(place / AWKWARD)
    assert exit_code([*HF, "--images", AWKWARD, "--secret", "MY_LICENCE"]) == 0
    said = capsys.readouterr()
    (call,) = hf.calls()
    kit = place / "runs" / "minicharts" / "cloud" / "kit"
    assert call["argv"] == [
        "jobs",
        "run",
        "--name",
        "minicharts",
        "--flavor",
        "l4x1",
        "--timeout",
        "1h",
        "--attempts",
        "3",
        "--detach",
        "--json",
        "--secrets",
        "HF_TOKEN",
        "--secrets",
        "MY_LICENCE",
        "--volume",
        f"{kit}:/mpa/kit:ro",
        "--volume",
        f"{photos}:/mpa/images:ro",
        "python:3.11",
        "bash",
        "/mpa/kit/job.sh",
    ]
    assert CANARIES.items() <= call["env"].items()
    assert "--out hf://buckets/me/kept/minicharts" in (kit / "job.sh").read_text()
    record = json.loads((kit.parent / "job.json").read_text())
    assert record["url"] == "hf://buckets/me/kept/minicharts"
    assert "6870aa" in said.err
    assert "USD" in said.out
    assert CANARY not in written(place) + said.out + said.err


@pytest.mark.parametrize("words", [SKY, HF])
def test_without_the_program_the_file_and_the_one_command_are_printed(
    words: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code([*words]) == 0
    said = capsys.readouterr()
    command = shlex.split(said.out.splitlines()[-1])
    assert command[:2] in (["sky", "jobs"], ["hf", "jobs"])
    assert "is not on PATH" in said.err
    (file,) = [path for path in place.rglob("*") if path.name in ("task.yaml", "job.sh")]
    assert str(file) in said.err
    assert not list(place.rglob("job.json"))
    assert CANARY not in written(place) + said.out + said.err


@pytest.mark.parametrize("words", [SKY, HF])
def test_a_dry_run_prints_all_and_writes_nothing(
    words: tuple[str, ...], place: Path, sky: Fake, hf: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code([*words, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "mpa-edge align minicharts" in said.out.replace('"$HOME/mpa-edge-env"/bin/', "")
    assert "USD" in said.out
    assert " jobs " in said.out
    assert not list(place.rglob("*"))
    assert not sky.calls() + hf.calls()
    assert CANARY not in said.out + said.err


def test_json_is_one_document(place: Path, sky: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    sky.answer(launch={"out": "Job submitted\n"})
    assert exit_code([*SKY, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["url"] == "s3://kept/runs/minicharts"
    assert document["command"][0] == "sky"
    assert document["estimate"][0]["usd"] > 0


def test_a_recipe_file_travels(place: Path, sky: Fake) -> None:
    own = write_recipe(place / "my recipes" / "own.yaml", images="{render: {n: 9}}", name="own")
    assert exit_code(["align", str(own), "--cloud", "--bucket", "s3://kept", "--gpus", "A10:1"]) == 0
    assert (place / "runs" / "own" / "cloud" / "kit" / "recipe.yaml").read_bytes() == own.read_bytes()
    assert "align /mpa/kit/recipe.yaml --out /mpa/out/own" in (place / "runs/own/cloud/task.yaml").read_text()


def test_how_it_runs_is_passed_on(place: Path, sky: Fake) -> None:
    how = ("--engine", "ray", "--max-cost", "2.5", "-v")
    assert exit_code([*SKY, *how, "--gpus", "H100:2", "--cloud-name", "two"]) == 0
    cloud = place / "runs" / "two" / "cloud"
    text = (cloud / "task.yaml").read_text()
    assert "--engine ray --max-cost 2.5\n" in text
    assert "mpa-edge[align,ray] @" in text


def test_what_sky_says_is_shown_without_secrets(place: Path, sky: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    sky.answer(launch={"out": f"env {CANARIES['HF_TOKEN']}\n", "err": "no credits: ALL_SECRETS\n", "code": 3})
    assert exit_code([*SKY, "--secret", "MY_LICENCE"]) == 1
    said = capsys.readouterr()
    assert "env (HF_TOKEN)" in said.err
    assert "no credits" in said.err
    assert said.err.splitlines()[-1].startswith("error: sky ended with exit code 3")
    assert CANARY not in written(place) + said.out + said.err
    sky.answer()
    assert exit_code([*SKY]) == 0


def test_a_job_is_not_launched_twice(place: Path, sky: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([*SKY]) == 0
    assert exit_code([*SKY]) == 1
    record = place / "runs" / "minicharts" / "cloud" / "job.json"
    assert f"and remove {record}" in capsys.readouterr().err
    assert len(sky.calls()) == 1
    record.unlink()
    assert exit_code([*SKY]) == 0


def test_a_run_of_this_machine_is_left_alone(place: Path, sky: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "runs" / "minicharts").mkdir(parents=True)
    (place / "runs" / "minicharts" / "run.json").write_text("{}")
    assert exit_code([*SKY]) == 1
    assert "is a local run" in capsys.readouterr().err
    assert exit_code(["align", "runs/minicharts", *SKY[1:]]) == 1
    assert "name its recipe" in capsys.readouterr().err
    assert not sky.calls()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["align", "--cloud"], 1, "--bucket s3://my-bucket/runs"),
        (["align", "--hf-jobs"], 1, "--bucket hf://buckets/OWNER/BUCKET"),
        ([*SKY, "--hf-jobs"], 2, "keep one"),
        (["align", "--bucket", "s3://kept"], 2, "--bucket is for a run on a rented machine"),
        (["align", "--secret", "X"], 2, "--secret is for a run on a rented machine"),
        ([*SKY, "--out", "s3://kept/x"], 1, "the run itself goes to --bucket"),
        ([*SKY, "--fresh"], 1, "another --cloud-name"),
        ([*SKY, "--images", "s3://pictures"], 1, "add --image-count N"),
        ([*SKY, "--images", "1000"], 1, "no folder '1000'"),
        ([*HF, "--images", "s3://pictures", "--image-count", "9"], 1, "cannot be mounted there: use hf://"),
        ([*SKY, "--cloud-name", "A b"], 1, "lower case letters"),
        ([*SKY, "--set", "title=a\rb"], 1, "control character"),
        ([*SKY, "--secret", f"X={CANARIES['HF_TOKEN']}"], 1, "takes the name of an environment variable"),
        ([*SKY, "--bucket", f"s3://x:{CANARIES['HF_TOKEN']}@kept"], 1, "is not a plain bucket URL"),
        ([*SKY, "--secret", "NOT_SET_HERE"], 1, "export NOT_SET_HERE first"),
    ],
)
def test_bad_input_is_one_clear_line(
    words: list[str], code: int, said: str, place: Path, sky: Fake, hf: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(words) == code
    err = capsys.readouterr().err
    assert said in err.splitlines()[-1]
    assert CANARY not in err
    assert not sky.calls() + hf.calls()


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "calls"), [("n", 0), ("y", 1)])
def test_somebody_at_a_terminal_is_asked_behind_the_price(answer: str, calls: int, place: Path, sky: Fake) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    words = [sys.executable, "-m", "mpa_edge", *SKY]
    with subprocess.Popen(words, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        said = b""
        while b"Launch it?" not in said:
            said += os.read(ours, 1000)
        assert b"USD" in said
        os.write(ours, f"{answer}\n".encode())
        with contextlib.suppress(OSError):  # the end of a terminal is an error
            while chunk := os.read(ours, 1000):
                said += chunk
    os.close(ours)
    assert child.returncode == 0, said
    assert len(sky.calls()) == calls
    assert (b"not launched" in said) is (calls == 0)


def test_a_program_that_cannot_start_is_said(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    broken = place.parent / "bin" / "sky"
    broken.parent.mkdir()
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}{os.pathsep}{os.environ['PATH']}")
    assert exit_code([*SKY]) == 1
    assert "cannot start" in capsys.readouterr().err


def test_hf_beside_this_python_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", path_without("hf"))
    assert launch.find_program("hf") == str(Path(sys.executable).parent / "hf")


def test_a_task_of_your_own_goes_along_inside_the_recipe(place: Path) -> None:
    (place / "mine.yaml").write_text("name: mine\nobjective: Ask about the sign.\nkinds: [{name: sign}]\n")
    own = write_recipe(place / "own.yaml", task=str(place / "mine.yaml"), images="{render: {n: 10}}")
    made = made_job(source=str(own))
    job.write_kit(made)
    with pytest.raises(MpaError, match="--set task=FILE names a file that a rented machine does not see"):
        made_job(source=str(own), overrides=(f"task={place / 'mine.yaml'}",))
    (place / "mine.yaml").unlink()
    assert load_recipe(str(made.kit / "recipe.yaml")) == made.recipe
