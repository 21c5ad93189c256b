"""Training in several processes (CPU, gloo), started by `accelerate launch`: they learn what one learns."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

import mpa_edge
from mpa_edge.cli.main import exit_code
from mpa_edge.config.recipe import LevelConfig
from mpa_edge.errors import MpaError
from mpa_edge.nursery.models import build_model, build_processor
from mpa_edge.runs.files import make_folder, read_json
from mpa_edge.runs.manifest import COMPLETE, MANIFEST, read_manifest
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.stages.identify import run_identify
from mpa_edge.stages.level import ddp
from mpa_edge.stages.level.stage import run_level
from mpa_edge.stages.run import Run, remember
from mpa_edge.tasks import get_task
from tests.stages.level.test_training import ANSWERS

ROOT = Path(mpa_edge.__file__).parent.parent
PATIENCE_S = 120.0


# --- one process -----------------------------------------------------------------------------------------------------


def test_a_single_process_has_nobody_to_talk_to() -> None:
    assert (ddp.rank(), ddp.world_size()) == (0, 1)
    assert ddp.broadcast("x") == "x"
    ddp.require_launchable(("annotate", "level"), LevelConfig(quantize="nf4", batch_size=7))
    with pytest.raises(RuntimeError, match="as it is"), ddp.process_errors():
        raise RuntimeError("as it is")


# --- what cannot be launched -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "changed", "says"),
    [
        ("3", {}, "batch_size 32 cannot be split evenly over 3 processes: use --num_processes 2, .*batch_size=33"),
        ("40", {}, "use --num_processes 32, or --set level.batch_size=40"),
        ("2", {"quantize": "nf4"}, "level.quantize is for a single GPU: launch one process, or use --set"),
    ],
)
def test_a_recipe_that_cannot_be_shared_is_one_line(monkeypatch, n: str, changed: dict, says: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", n)
    with pytest.raises(MpaError, match=says):
        ddp.require_launchable(("level",), LevelConfig(**changed))
    ddp.require_launchable(("level",), LevelConfig(batch_size=int(n)))


def test_sharded_models_are_refused(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(MpaError, match="launch it without DeepSpeed, FSDP and Megatron-LM"):
        ddp.require_launchable(("level",), LevelConfig())


@pytest.mark.parametrize("command", ["align", "annotate"])
def test_only_level_trains_in_several_processes(monkeypatch, capsys, tmp_path, command: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert exit_code([command, "minicharts", "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: only level trains in several processes, and 2 were launched: run annotate")
    assert said.count("\n") == 1
    monkeypatch.setenv("RANK", "1")
    assert exit_code([command, "minicharts", "--out", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err == ""  # said once
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError("x"), "out of memory in a training process: use --set level.gradient_checkpointing=true"),
        (RuntimeError("Connection\nreset"), r"training process 1 stopped, .* \(Connection reset\): .* resumes from"),
        (MpaError("put it back"), "put it back"),
    ],
)
def test_what_ends_one_of_several_processes_is_one_line(monkeypatch, error: Exception, says: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(MpaError, match=says), ddp.process_errors():
        raise error


# --- real processes --------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(shelf, make_run, tmp_path) -> Callable[..., Run]:
    """prepared(level__rank=2) -> a run that is ready for level, with 30 gap items on six images."""
    student = tmp_path / "student"
    build_model("student").half().save_pretrained(student)
    build_processor().save_pretrained(student)

    def teacher(request) -> str:
        if request.prompt in get_task("minicharts").annotation_prompts:
            n = asked.setdefault((request.prompt, request.image.getpixel((0, 0))), len(asked))
            return f"Question: What is {n}?\nAnswer: {ANSWERS[n % 9]}"
        return ANSWERS[int(request.prompt.split("?")[0].split()[-1]) % 9]

    asked: dict[object, int] = {}
    shelf(teacher=teacher, student=lambda request: "nothing")

    def prepare(name: str, **changed: object) -> Run:
        shared = {"level__batch_size": 4, "level__min_gap": 4, "level__holdout": 0.3, "level__warmup_steps": 0}
        models = {"student": str(student), "teacher": str(student), "device": "cpu", "threads": 1}
        run = make_run(name, **(models | shared | changed))
        make_folder(run.folder)
        remember(run)
        run_annotate(run)
        run_identify(run)
        return run

    return prepare


def copied(run: Run, name: str) -> Run:
    shutil.copytree(run.folder, run.folder.with_name(name))
    return replace(run, folder=run.folder.with_name(name))


def difference(one: Run, two: Run) -> float:
    """The largest difference of two trained weights."""
    alone, together = (
        load_file(path) for run in (one, two) for path in run.stage_folder("level").glob("adapter/*.safetensors")
    )
    assert alone.keys() == together.keys()
    return max(float((alone[key].float() - together[key].float()).abs().max()) for key in alone)


def curve(run: Run, key: str) -> list[float]:
    return [entry[key] for entry in read_json(run.stage_folder("level") / "losses.json") if key in entry]


@contextmanager
def launched(run: Run, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`level` in two processes, waited for at the end of the block."""
    launch = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    command = [sys.executable, "-m", *launch, "-m", "mpa_edge", "level", str(run.folder), *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
        process.wait(PATIENCE_S)
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training processes of a launch, the first one first."""
    found = psutil.Process(process.pid).children(recursive=True)
    ranks = [child for child in found if "mpa_edge" in child.cmdline() and "level" in child.cmdline()]
    return sorted(ranks, key=lambda child: child.environ()["RANK"])


@pytest.mark.slow
def test_two_processes_learn_what_one_process_learns(prepared) -> None:
    """DoRA, early stopping, gradient accumulation in one of them; steps within the first pass over the samples."""
    one = prepared(
        "one",
        level__dora=True,
        level__strength=1.0,
        level__rank=2,
        level__max_steps=4,
        level__eval_steps=2,
        level__targets=["language"],
    )
    two = copied(one, "two")
    run_level(one)
    with launched(two, "--json") as process:
        out, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert out.startswith("{")
    assert out.count('"run"') == 1
    assert said.count("level: ") == 1  # nothing is said twice

    alone, together = (read_manifest(run.stage_folder("level")) for run in (one, two))
    assert alone is not None
    assert together is not None
    assert together.used == {**alone.used, "processes": "2"}
    assert together.inputs == alone.inputs
    assert together.outputs.keys() == alone.outputs.keys()
    same = ("train", "holdout", "replayed", "steps", "best_step")
    assert {key: together.counts[key] for key in same} == {key: alone.counts[key] for key in same}
    assert curve(two, "loss") == pytest.approx(curve(one, "loss"), rel=1e-4)
    assert curve(two, "eval_loss") == pytest.approx(curve(one, "eval_loss"), rel=0.05)
    assert difference(one, two) < 1e-4
    left = {path.name for path in two.stage_folder("level").iterdir()}
    assert left == {path.name for path in one.stage_folder("level").iterdir()}

    with launched(two) as process:  # nothing left to do: both processes end, nothing is written
        said = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 0, said
    assert "level: already done, nothing changed" in said
    assert read_manifest(two.stage_folder("level")) == together


@pytest.mark.slow
def test_a_killed_process_ends_the_command_and_a_rerun_resumes(prepared) -> None:
    """All weights trainable; killed in the second of three passes over 20 samples, whose order must be found again."""
    one = prepared(
        "one",
        level__method="full",
        level__subset="all",
        level__holdout=0.5,
        level__max_steps=14,
        level__eval_steps=4,
        level__patience=0,
    )
    two = copied(one, "two")
    checkpoint = two.stage_folder("level") / "checkpoints" / "checkpoint-8" / COMPLETE
    with launched(two) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not checkpoint.is_file():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ranks = ranks_of(process)
        ranks[1].kill()
    assert process.returncode == 1
    assert "Signal 9 (SIGKILL)" in process.communicate()[1]
    assert not psutil.wait_procs(ranks, timeout=120)[1]
    level = two.stage_folder("level")
    assert not (level / MANIFEST).exists()
    assert not (level / "adapter").exists()
    with launched(two) as process:
        assert process.wait(PATIENCE_S) == 0, process.communicate()
    run_level(one)
    assert read_manifest(level).counts["train"] == 20
    assert curve(two, "loss") == pytest.approx(curve(one, "loss"), rel=1e-3)
    assert difference(one, two) < 1e-4
