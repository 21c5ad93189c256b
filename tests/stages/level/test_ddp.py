"""Several real training processes (CPU, gloo) learn what one learns, and nobody is left behind when one dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import mpa_edge
from mpa_edge.errors import MpaError
from mpa_edge.nursery.models import build_model, build_processor
from mpa_edge.runs.files import make_folder, read_json, write_json
from mpa_edge.runs.manifest import COMPLETE, StageClock, read_manifest
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.stages.identify import run_identify
from mpa_edge.stages.level import ddp_worker, launch, training
from mpa_edge.stages.level.answer_logits import IGNORE, answer_logits
from mpa_edge.stages.level.dataset import AnswerCollator, as_rows
from mpa_edge.stages.level.ddp import EvenOrder, agreed, blank, place
from mpa_edge.stages.level.processes import Processes, processes
from mpa_edge.stages.level.selection import Selection
from mpa_edge.stages.level.stage import run_level
from mpa_edge.stages.run import Run, remember
from mpa_edge.tasks import get_task
from tests.stages.level.test_training import ANSWERS, records

ROOT = Path(mpa_edge.__file__).parent.parent
RANK_MODULE = "mpa_edge.stages.level.ddp_worker"
PATIENCE_S = 120.0


# --- the order of samples, and rows that fill it ---------------------------------------------------------------------


@pytest.mark.parametrize(("n", "at_once"), [(11, 4), (12, 4), (3, 8)])
def test_the_order_is_that_of_one_process(n: int, at_once: int) -> None:
    from accelerate.data_loader import SeedableRandomSampler

    alone = SeedableRandomSampler(range(n), data_seed=5)
    for epoch in range(3):
        alone.set_epoch(epoch)
        order = EvenOrder(n, at_once, True, 5, lambda epoch=epoch: epoch)
        assert list(order) == list(alone) + [n] * (-n % at_once)
        assert len(order) == len(list(order))
    assert list(EvenOrder(n, at_once, False, 5, lambda: 1))[:n] == list(range(n))


def test_a_blank_row_teaches_nothing(make_run, pictures) -> None:
    processor = build_processor()
    rows = as_rows(records(3), processor, make_run())
    collate, student = AnswerCollator(processor, pictures, 10_000), build_model("student").eval()
    empty = collate([blank(rows[0]), blank(rows[0])])
    assert (empty["labels"] == IGNORE).all()
    logits, labels = answer_logits(student, empty)
    assert logits.shape[0] == labels.shape[0] == 0
    assert torch.nn.functional.cross_entropy(logits, labels, reduction="sum") == 0
    alone = answer_logits(student, collate(rows[:1]))
    beside = answer_logits(student, collate([rows[0], blank(rows[0])]))
    assert torch.equal(alone[1], beside[1])
    assert torch.allclose(alone[0], beside[0], atol=1e-5)


def test_alone_there_is_nobody_to_agree_with() -> None:
    assert place() == (0, 1)
    assert agreed("x") == "x"


def test_memory_that_runs_out_starts_all_again_with_less(make_run, tmp_path, monkeypatch, capsys) -> None:
    tried = []

    def launched(run, asked, checkpoints, out, at_once):
        tried.append(at_once)
        if at_once > 1:
            raise MemoryError("rank 1")
        return {"losses": [], "steps": 4, "best_step": 4, "used": {"processes": "2"}, "peak_rss_bytes": 7}

    monkeypatch.setattr(training, "launch", launched)
    run = replace(make_run(level__batch_size=12), processes=Processes(2))
    selection = Selection(records(12), (), 0)
    outcome = training.train(run, selection, tmp_path / "c", tmp_path / "adapter", StageClock(tmp_path))
    assert (tried, outcome.steps, outcome.peak_rss_bytes) == ([6, 3, 1], 4, 7)
    assert "level goes on with 3 samples at a time, 12 in a step" in capsys.readouterr().err


# --- real processes --------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(shelf, make_run, tmp_path) -> Callable[..., Run]:
    """prepared(level__rank=2) -> a run that is ready for level, with 30 gap items on six pictures."""
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
        run = make_run(name, **models, **shared, **changed)
        make_folder(run.folder)
        remember(run)
        run_annotate(run)
        run_identify(run)
        return run

    return prepare


def copied(run: Run, name: str) -> Run:
    shutil.copytree(run.folder, run.folder.with_name(name))
    return replace(run, folder=run.folder.with_name(name))


def learned(run: Run) -> dict[str, torch.Tensor]:
    (path,) = (run.stage_folder("level") / "adapter").glob("*.safetensors")
    return load_file(path)


def difference(one: Run, two: Run) -> float:
    alone, together = learned(one), learned(two)
    assert alone.keys() == together.keys()
    return max(float((alone[key].float() - together[key].float()).abs().max()) for key in alone)


def held_out(run: Run) -> list[float]:
    return [
        entry["eval_loss"] for entry in read_json(run.stage_folder("level") / "losses.json") if "eval_loss" in entry
    ]


def program(*words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "mpa_edge", *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def configuration(folder: Path, machine: int, port: int) -> str:
    path = folder / f"machine-{machine}.yaml"
    path.write_text(
        f"compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\nnum_machines: 2\n"
        f"num_processes: 2\nmachine_rank: {machine}\nmain_process_ip: 127.0.0.1\nmain_process_port: {port}\n"
        f"same_network: true\nmixed_precision: 'no'\n"
    )
    return str(path)


@pytest.mark.slow
def test_two_machines_learn_what_one_process_learns(prepared, tmp_path) -> None:
    """Each launcher stands for a machine. DoRA, a curriculum, the teacher's probabilities, early stopping."""
    one = prepared(
        "one",
        level__dora=True,
        level__strength=1.0,
        level__rank=2,
        level__curriculum=True,
        level__distill=0.5,
        level__max_steps=8,
        level__eval_steps=2,
        level__targets=["language"],
    )
    two, port = copied(one, "two"), free_port()
    run_level(one)
    helper = program("level", str(two.folder), "--accelerate-config", configuration(tmp_path, 1, port))
    run_level(replace(two, processes=processes(None, configuration(tmp_path, 0, port))))
    said = helper.communicate(timeout=PATIENCE_S)[1]
    assert (helper.returncode, said.strip()) == (0, "level: machine 1 has done its share")

    alone, together = (read_manifest(run.stage_folder("level")) for run in (one, two))
    assert alone is not None
    assert together is not None
    assert together.used["processes"] == "2"
    assert together.inputs == alone.inputs
    assert together.outputs.keys() == alone.outputs.keys()
    same = ("train", "holdout", "replayed", "steps", "best_step")
    assert {key: together.counts[key] for key in same} == {key: alone.counts[key] for key in same}
    assert alone.counts["train"] % 4
    order = "3-level/student-losses.json"
    assert read_json(two.folder / order) == read_json(one.folder / order)
    assert held_out(two) == pytest.approx(held_out(one), abs=1e-4)
    assert difference(one, two) < 1e-4
    left = {path.name for path in two.stage_folder("level").iterdir()}
    assert left == {path.name for path in one.stage_folder("level").iterdir()}


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training processes below a program, the first one first; empty until both are there."""
    found = [child for child in psutil.Process(process.pid).children(recursive=True) if is_rank(child)]
    return sorted(found, key=lambda child: child.environ()["RANK"]) if len(found) == 2 else []


def is_rank(process: psutil.Process) -> bool:
    try:
        return RANK_MODULE in process.cmdline()
    except psutil.Error:
        return False


def once(ready: Callable[[], object], process: subprocess.Popen[str]) -> object:
    """What `ready` says as soon as it says something."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := ready()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@contextmanager
def started(run: Run) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Level in two processes; afterwards everybody must be gone."""
    process = program("level", str(run.folder), "--num-processes", "2")
    family: list[psutil.Process] = []
    try:
        ranks = once(lambda: ranks_of(process), process)
        family = psutil.Process(process.pid).children(recursive=True)
        yield process, ranks
        process.wait(PATIENCE_S)
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive
    finally:
        for one in family:
            if one.is_running():
                one.kill()
        process.kill()


@pytest.mark.slow
def test_whoever_dies_takes_all_along_and_the_same_command_goes_on(prepared) -> None:
    """Ctrl-C, a killed program, a killed training process; all weights free; the third pass over the samples."""
    one = prepared("one", level__method="full", level__max_steps=14, level__eval_steps=4, level__patience=0)
    two = copied(one, "two")
    run_level(one)
    with started(two) as (process, _):
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    with started(two) as (process, _):
        process.kill()
    # a step of the second pass, whose order must be found again
    assert 8 % -(-read_manifest(one.stage_folder("level")).counts["train"] // 4)
    with started(two) as (process, ranks):
        once((two.stage_folder("level") / "checkpoints" / "checkpoint-8" / COMPLETE).is_file, process)
        ranks[1].kill()
    said = process.communicate()[1]
    assert process.returncode == 1
    assert said.splitlines()[-1] == (
        "error: training process 1 was killed by signal 9, and all others with it: run the same command again, it goes "
        "on from the last checkpoint"
    )
    assert "Traceback" not in said
    run_level(replace(two, processes=Processes(2)))
    assert difference(one, two) < 1e-4
    assert held_out(two) == pytest.approx(held_out(one), abs=1e-4)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MpaError("put it back"), "user"),
        (MemoryError("x"), "memory"),
        (KeyError("x"), "other"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer"), "peer"),
    ],
)
def test_what_ends_a_training_process_is_written_down(make_run, tmp_path, monkeypatch, error, kind) -> None:
    def work(*_: object) -> None:
        raise error

    monkeypatch.setattr(ddp_worker, "work", work)
    monkeypatch.setattr(ddp_worker, "die_with_parent", lambda parent: None)
    monkeypatch.setenv(launch.LAUNCHER, "1")
    monkeypatch.setenv("RANK", "0")
    run = replace(make_run(), processes=Processes(2))
    order = launch._order(run, Processes(2), tmp_path / "checkpoints", tmp_path / "adapter", 2)
    write_json(tmp_path / launch.ORDER, order.model_copy(update={"quiet": False}))
    assert ddp_worker.main(tmp_path / launch.ORDER) == 1
    said = launch.Failure.model_validate(read_json(tmp_path / launch.FAILED.format(0)))
    assert said.kind == kind
    assert str(error) in said.message
    assert ("Traceback" in said.trace) == (kind != "user")
