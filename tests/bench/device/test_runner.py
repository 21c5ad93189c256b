"""The real runner, as a device has it, on real exports of the built-in student: ONNX, GGUF, and both together."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from mpa_edge.bench.device.memory import drop_from_page_cache, is_in_memory
from mpa_edge.bench.device.protocol import JobOrder, Step
from mpa_edge.images.folder import open_image
from mpa_edge.types import Request
from mpa_edge.vlm import load
from tests.bench.bundles import answers_of, job, lines_of
from tests.bench.runners import BOTH, EXPORTS, LONGEST_S, everything, ids, run, said, start, wait_for

pytestmark = [pytest.mark.peer, pytest.mark.slow]

# --- what is answered -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPORTS)
def test_every_question_once_with_the_answers_of_the_host(bundles, at_home, tmp_path, name) -> None:
    bundle, folder = bundles[name], job(tmp_path / "job", everything(bundles[name]))
    assert run(bundle.folder, folder) == (0, "")
    lines, answers = lines_of(folder), answers_of(folder)
    assert [(one["variant"], one["id"], one["repetition"]) for one in answers] == [
        step.key for step in everything(bundle).steps
    ]
    assert all((one["text"], one["tokens"]) == at_home[name][one["id"]] for one in answers)
    assert all(one["same_pixels"] for one in answers)
    kinds = ["loaded", *["answer"] * 4, "memory"]
    assert [line.kind for line in lines] == [*kinds * 4, "end"]
    assert [line.block for line in lines if line.kind == "loaded"] == [0, 1, 2, 3]
    loaded = [line.values for line in lines if line.kind == "loaded"]
    assert [one["threads"] for one in loaded] == [1] * 4
    assert [one["cold"] for one in loaded][2:] == [False, False]
    assert ("onnxruntime 1." in loaded[0]["runtime"]) == (name != "gguf")
    assert ("llama-cpp-python 0." in loaded[0]["runtime"]) == (name != "onnx")
    uptimes = [line.values["uptime_s"] for line in lines if line.kind != "end"]
    assert uptimes == sorted(uptimes)
    assert all(line.values["peak_bytes"] > 20_000_000 for line in lines if line.kind == "memory")
    before = (folder / "out.jsonl").read_bytes()
    assert run(bundle.folder, folder) == (0, "")
    assert (folder / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", EXPORTS)
def test_an_image_is_opened_each_time(bundles, tmp_path, name) -> None:
    asked = ids(bundles[name])[0]
    order = JobOrder({"artifact": BOTH["artifact"]}, tuple(Step("artifact", asked, i) for i in range(4)), threads=1)
    folder = job(tmp_path / "job", order)
    assert run(bundles[name].folder, folder) == (0, "")
    answers = answers_of(folder)
    assert len({one["text"] for one in answers}) == 1
    times = [one["vision_encode_s"] for one in answers]
    assert min(times) > 5e-4
    for one in answers:
        parts = one["preprocess_s"] + one["vision_encode_s"]
        assert 0 < parts < one["ttft_s"] <= one["total_s"]
        assert (one["tpot_s"] * one["tokens_per_s"] == pytest.approx(1.0)) if one["tokens"] > 1 else "tpot_s" not in one
    # the same question twice in one call is what would have been measured otherwise
    model = load(str(EXPORTS[name]("student")), name="host", threads=1)
    row = json.loads((bundles[name].folder / "questions.jsonl").read_text().splitlines()[0])
    request = Request(open_image(bundles[name].folder / row["image"]), row["prompt"], 8)  # type: ignore[arg-type]
    cached = model.answer([request, request])[1].timing
    model.close()
    assert cached.vision_s < 1e-4  # type: ignore[union-attr, operator]


def test_answers_do_not_depend_on_their_neighbours(bundles, at_home, tmp_path) -> None:
    for name in ("onnx", "hybrid"):
        steps = tuple(Step("artifact", one) for one in reversed(ids(bundles[name])))
        folder = job(tmp_path / name, JobOrder({"artifact": BOTH["artifact"]}, steps, threads=1, warm_up=0))
        assert run(bundles[name].folder, folder) == (0, "")
        assert {one["id"]: (one["text"], one["tokens"]) for one in answers_of(folder)} == at_home[name]


def test_only_a_proven_cold_load_is_called_cold(bundles, tmp_path) -> None:
    bundle = bundles["gguf"]
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "copy"))
    weights = sorted((copy / "models" / "artifact").glob("*.gguf"))
    can_be_cold = drop_from_page_cache(weights)
    with weights[0].open("rb") as file:
        file.read()
    assert is_in_memory(weights[0])
    folder = job(tmp_path / "job", JobOrder({"artifact": BOTH["artifact"]}, (Step("artifact", ids(bundle)[0]),)))
    assert run(copy, folder) == (0, "")
    assert [line.values["cold"] for line in lines_of(folder) if line.kind == "loaded"] == [can_be_cold]
    assert not drop_from_page_cache([])
    in_memory = Path(shutil.copy(weights[0], "/dev/shm"))
    assert not drop_from_page_cache([in_memory])
    in_memory.unlink()


def test_cores(bundles, tmp_path) -> None:
    one = min(os.sched_getaffinity(0))
    step = (Step("artifact", ids(bundles["onnx"])[0]),)
    folder = job(tmp_path / "job", JobOrder({"artifact": BOTH["artifact"]}, step, cores=str(one)))
    assert run(bundles["onnx"].folder, folder) == (0, "")
    loaded = lines_of(folder)[0].values
    assert (loaded["cores"], loaded["threads"]) == ([one], 1)
    folder = job(tmp_path / "other", JobOrder({"artifact": BOTH["artifact"]}, step, cores="4000-4003"))
    assert run(bundles["onnx"].folder, folder) == (1, "")
    assert [line.kind for line in lines_of(folder)] == ["failed", "end"]
    assert lines_of(folder)[0].values["reason"].endswith("change cpu.cores of the target")


# --- kills ------------------------------------------------------------------------------------------------------------


def descendants(pid: int) -> set[int]:
    """Processes that a process has started, as long as it lives."""
    return {int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def written(folder: Path) -> bytes:
    return (folder / "out.jsonl").read_bytes() if (folder / "out.jsonl").exists() else b""


def gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_killed_at_any_moment_nothing_is_lost_or_repeated(bundles, at_home, tmp_path) -> None:
    name = "hybrid"
    order, draw = everything(bundles[name]), random.Random(2)
    folder, kept = job(tmp_path / "job", order), b""
    # once while it starts, then at a random moment behind a line of its own
    for waits, latest_s in ((False, 0.5), (True, 0.3), (True, 0.05), (True, 0.3)):
        process = start(bundles[name].folder, folder)
        wait_for(lambda waits=waits, kept=kept: not waits or len(written(folder)) > len(kept))
        time.sleep(draw.uniform(0, latest_s))
        children = descendants(process.pid)
        assert process.poll() is None
        process.kill()
        process.communicate()
        assert all(gone(child) for child in children)
        assert written(folder).startswith(kept)
        kept = written(folder)
    assert 0 < len(answers_of(folder)) < len(order.steps)
    assert run(bundles[name].folder, folder) == (0, "")
    answers = answers_of(folder)
    assert sorted(said(answers)) == sorted(step.key for step in order.steps)
    assert len(answers) == len(order.steps)
    assert all((one["text"], one["tokens"]) == at_home[name][one["id"]] for one in answers)
    blocks = [line.block for line in lines_of(folder) if line.kind == "loaded"]
    assert len(set(blocks)) == len(blocks)


def test_an_end_by_signal_is_quiet_and_can_be_gone_on_with(bundles, tmp_path) -> None:
    # long enough that a signal comes before the end also on a busy machine
    steps = [Step(variant, one, again) for variant in BOTH for again in range(60) for one in ids(bundles["onnx"])]
    order = everything(bundles["onnx"], steps=tuple(steps))
    folder, n = job(tmp_path / "job", order), 0
    for number, whom in ((signal.SIGTERM, "runner"), (signal.SIGINT, "runner"), (signal.SIGTERM, "worker first")):
        process = start(bundles["onnx"].folder, folder)
        wait_for(lambda n=n: (folder / "out.jsonl").exists() and len(answers_of(folder)) > n)
        children = descendants(process.pid)
        for pid in children if whom == "worker first" else [process.pid]:
            os.kill(pid, number)
        assert process.communicate(timeout=LONGEST_S) == ("", "")
        assert process.returncode == 128 + number
        assert children
        assert all(gone(child) for child in children)
        n = len(answers_of(folder))
        assert n < len(order.steps)
    assert run(bundles["onnx"].folder, folder) == (0, "")
    assert len(said(answers_of(folder))) == len(answers_of(folder)) == len(order.steps)
    assert not [line for line in lines_of(folder) if line.kind == "failed"]


def test_a_torn_line_is_asked_again_and_no_byte_moves(bundles, at_home, tmp_path) -> None:
    bundle = bundles["onnx"]
    order = JobOrder({"artifact": BOTH["artifact"]}, tuple(Step("artifact", one) for one in ids(bundle)), threads=1)
    folder = job(tmp_path / "job", order)
    assert run(bundle.folder, folder) == (0, "")
    lines = (folder / "out.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (b"".join(lines[:3]) + lines[3][:-20] + b"\xff\xfe{", b"".join(lines[:3]) + lines[3][:-1]):
        (folder / "out.jsonl").write_bytes(kept)
        assert run(bundle.folder, folder) == (0, "")
        assert (folder / "out.jsonl").read_bytes().startswith(kept + b"\n")
        answers = answers_of(folder)
        assert {one["id"]: (one["text"], one["tokens"]) for one in answers} == at_home["onnx"]
        assert len(answers) == len(order.steps)


def test_two_runners_do_not_write_at_once(bundles, tmp_path) -> None:
    folder = job(tmp_path / "job", everything(bundles["onnx"]))
    first = start(bundles["onnx"].folder, folder)
    wait_for(lambda: (folder / "out.jsonl").exists())
    status, err = run(bundles["onnx"].folder, folder)
    assert status == 1
    assert err.endswith("out.jsonl is being written by another runner: wait for it, or stop it\n")
    assert first.communicate(timeout=LONGEST_S) == ("", "")
    assert (first.returncode, len(answers_of(folder))) == (0, 16)


def test_a_full_disk(bundles, tmp_path) -> None:
    folder = job(tmp_path / "job", everything(bundles["onnx"]))
    limit = (1500, 1500)
    status, err = run(
        bundles["onnx"].folder, folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    assert status == 1
    assert err.startswith("error: disk full at")
    assert len(err.splitlines()) == 1
    assert (folder / "out.jsonl").stat().st_size == 1500
    assert run(bundles["onnx"].folder, folder) == (0, "")
    assert len(said(answers_of(folder))) == len(answers_of(folder)) == 16
