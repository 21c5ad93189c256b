"""A llama-server's job against llama.cpp's own server: nothing is lost or repeated, whatever breaks in between."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mpa_edge.bench.device.protocol import blocks, read_questions
from mpa_edge.bench.host.llama_server_process import READ_PID, free_port, remove, stop_leftovers, usable_cores
from mpa_edge.bench.results.records import METRICS
from mpa_edge.bench.transports.transport import LocalTransport
from mpa_edge.errors import MpaError
from mpa_edge.types import Request
from mpa_edge.vlm import load
from tests.bench.llama_server import program
from tests.bench.llama_server_asked import IDS, answers, ask, bundle, lines, order
from tests.bench.peers import run

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def device(tmp_path: Path) -> LocalTransport:
    return LocalTransport(str(tmp_path / "device it's"))


@pytest.fixture
def server(tmp_path: Path) -> Path:
    return program(tmp_path)


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    return program(tmp_path, "tests.bench.faulty_server")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def running(device: LocalTransport) -> list[int]:
    """Servers of this device, by what its folders say."""
    pids = [int(path.read_text()) for path in Path(device.root).glob("jobs/one/server-*/server.pid")]
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists()]


def soon(what: Callable[[], object], wait_s: float = 20.0) -> None:
    deadline = time.monotonic() + wait_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def expected(variant: str) -> dict[str, str]:
    """What llama.cpp says in this process."""
    vlm = load(str(bundle().folder / bundle().manifest.variants[variant]), name=variant, threads=1)
    said = {}
    for row in read_questions(bundle().folder).values():
        if row["id"] in IDS:
            image = Image.open(bundle().folder / row["image"]).convert("RGB")
            said[row["id"]] = vlm.answer([Request(image, row["prompt"], row["max_new_tokens"])])[0].text
    vlm.close()
    return said


def test_answers_are_those_of_the_runtime_in_this_process(device: LocalTransport, server: Path, out: Path) -> None:
    asked = order(*IDS, variants=("artifact", "base"))
    assert ask(device, asked, out, server)
    for variant in ("artifact", "base"):
        found = {
            line.values["id"]: line.values["text"]
            for line in lines(out)
            if (line.kind, line.variant) == ("answer", variant)
        }
        assert found == expected(variant)
        assert len(set(found.values())) > 3
    assert running(device) == []


def test_lines_are_those_of_a_runner(device: LocalTransport, server: Path, out: Path) -> None:
    asked = order(*IDS[:2], variants=("artifact", "base"), repetitions=2)
    assert ask(device, asked, out, server)
    assert answers(out) == [step.key for step in asked.steps]
    kinds = [line.kind for line in lines(out)]
    assert kinds == ["loaded", "answer", "answer", "memory"] * len(blocks(asked.steps)) + ["end"]
    assert [line.block for line in lines(out)[:-1]] == [n for n in range(4) for _ in range(4)]
    loaded, first, _, memory, *_ = (line.values for line in lines(out))
    assert loaded["threads"] == 1
    assert loaded["backend"] == "llama.cpp CPU"
    assert 0 < loaded["load_s"] < 20
    assert first["ttft_s"] > 0
    assert {"preprocess_s", "vision_encode_s", "prefill_s"}.isdisjoint(first)
    assert set(first) - set(METRICS) == {"id", "repetition", "text", "finish_reason", "same_pixels", "uptime_s"}
    assert 10_000_000 < memory["peak_bytes"] < 1_000_000_000
    assert memory["method"].startswith(("VmHWM", "max(VmHWM"))
    assert loaded["uptime_s"] < first["uptime_s"] <= memory["uptime_s"]


def test_what_was_answered_is_not_asked_again(device: LocalTransport, server: Path, out: Path) -> None:
    assert ask(device, order(*IDS[:2]), out, server)
    with out.open("a") as file:
        file.write('{"kind": "answer", "vari')  # what a kill leaves
    assert ask(device, order(*IDS[:4]), out, server)
    assert answers(out) == [step.key for step in order(*IDS[:4]).steps]
    size = out.stat().st_size
    assert ask(device, order(*IDS[:4]), out, server)
    assert out.stat().st_size == size


DRIVER = """
import sys
from pathlib import Path
from mpa_edge.bench.transports.transport import LocalTransport
from tests.bench import llama_server_asked as asked
from tests.bench.bundles import read_bundle
asked.bundle = lambda: read_bundle(Path(sys.argv[4]))
asked.ask(LocalTransport(sys.argv[1]), asked.order(*asked.IDS, repetitions=30), Path(sys.argv[2]), sys.argv[3])
"""


def test_a_killed_client_leaves_a_server_that_the_next_one_stops(
    device: LocalTransport, server: Path, out: Path
) -> None:
    command = [sys.executable, "-c", DRIVER, device.root, str(out), str(server), str(bundle().folder)]
    client = subprocess.Popen(command, cwd=Path(__file__).parents[3])
    try:
        soon(lambda: out.exists() and len(answers(out)) >= 3, 60)
    finally:
        client.kill()
        client.wait()
    left, had = running(device), answers(out)
    assert len(left) == 1
    asked = order(*IDS, repetitions=30)
    assert 3 <= len(had) < len(asked.steps)
    short = order(*IDS, repetitions=2)
    assert ask(device, short, out, server)
    assert sorted(answers(out)) == sorted({*had, *(step.key for step in short.steps)})
    assert not Path(f"/proc/{left[0]}").exists()
    assert running(device) == []


def kill_once(device: LocalTransport, out: Path, after: int, number: int) -> threading.Thread:
    """Send a signal to the server when there are so many answers."""

    def work() -> None:
        soon(lambda: out.exists() and len(answers(out)) >= after)
        for pid in running(device):
            os.kill(pid, number)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_dies_or_hangs_is_replaced(device: LocalTransport, server: Path, out: Path, number: int) -> None:
    asked = order(*IDS, repetitions=5, timeout_s=2.0)
    killer = kill_once(device, out, 4, number)
    assert ask(device, asked, out, server)
    killer.join()
    assert answers(out) == [step.key for step in asked.steps]
    assert [line.kind for line in lines(out)].count("loaded") == 2
    assert running(device) == []


def test_a_question_that_ends_its_server_twice_is_a_failed_line(
    device: LocalTransport, faulty: Path, out: Path
) -> None:
    assert not ask(device, order(IDS[0], "boom", IDS[1]), out, faulty)
    assert [line.kind for line in lines(out)] == [
        "loaded",
        "answer",
        "memory",
        "loaded",
        "memory",
        "failed",
        "loaded",
        "answer",
        "memory",
        "end",
    ]
    (failed,) = (line.values for line in lines(out) if line.kind == "failed")
    assert (failed["id"], failed["repetition"]) == ("boom", 0)
    assert failed["reason"].endswith("rerun to resume")
    assert "\n" not in failed["reason"]


def test_a_question_without_an_answer_is_a_failed_line(device: LocalTransport, faulty: Path, out: Path) -> None:
    began = time.monotonic()
    assert not ask(device, order(IDS[0], "hang", IDS[1], timeout_s=1.0), out, faulty)
    assert time.monotonic() - began < 30
    assert [key[1] for key in answers(out)] == [IDS[0], IDS[1]]
    (failed,) = (line.values for line in lines(out) if line.kind == "failed")
    assert "gave no answer within 1 s" in failed["reason"]


def test_a_question_that_is_too_long_fails_alone(device: LocalTransport, server: Path, out: Path) -> None:
    assert not ask(device, order(IDS[0], "long", IDS[1]), out, server)
    assert [line.kind for line in lines(out)] == ["loaded", "answer", "failed", "answer", "memory", "end"]
    assert lines(out)[2].values["reason"].endswith("ask a shorter question, or export for a longer context")


def test_it_runs_on_the_cores_that_it_is_given(device: LocalTransport, server: Path, out: Path) -> None:
    core = max(os.sched_getaffinity(0))
    assert ask(device, order(IDS[0], cores=str(core)), out, server)
    assert lines(out)[0].values["cores"] == [core]
    assert lines(out)[0].values["threads"] == 1
    assert usable_cores(device, str(core)) == 1
    assert usable_cores(device, None) == len(os.sched_getaffinity(0))
    with pytest.raises(MpaError, match=r"cores 900 are not available here, only \d.*: change cpu.cores of the target"):
        ask(device, order(IDS[2], cores="900"), out, server)


# --- what a device says is no argument --------------------------------------------------------------------------------


def test_only_folders_of_ours_are_removed(device: LocalTransport, tmp_path: Path) -> None:
    root, outside = Path(device.root, "jobs", "one"), tmp_path / "outside"
    digits = "0123456789abcdef"
    ours = root / f"server-{digits}"
    kept = [root / name for name in ("server-1", f"server-{digits}0", "server-a\nb", f"server-{digits[:-1]}G", "other")]
    for folder in (ours, outside, *kept):
        folder.mkdir(parents=True)
        (folder / "job.sh").write_text(f"touch {tmp_path}/ran\n")
    (ours / "job.sh").unlink()
    (root / f"server-{digits[::-1]}").symlink_to(outside)
    (Path(device.root) / "b").mkdir()
    stop_leftovers(device, str(root))
    assert not ours.exists()
    assert all((folder / "job.sh").exists() for folder in (outside, *kept))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="other"):
        remove(device, str(root), "other")


def test_a_root_that_is_a_link_elsewhere_is_left_alone(device: LocalTransport, tmp_path: Path) -> None:
    (tmp_path / "outside" / "server-0123456789abcdef").mkdir(parents=True)
    Path(device.root, "jobs").mkdir(parents=True)
    Path(device.root, "jobs", "one").symlink_to(tmp_path / "outside")
    stop_leftovers(device, f"{device.root}/jobs/one")
    stop_leftovers(device, f"{device.root}/../outside")
    assert (tmp_path / "outside" / "server-0123456789abcdef").is_dir()


@pytest.mark.parametrize("pid", ["{sleeper}", "{sleeper} 1", "$(kill {sleeper})", ""])
def test_a_process_that_only_a_file_names_is_not_killed(device: LocalTransport, pid: str) -> None:
    folder = Path(device.root, "jobs", "server-0123456789abcdef")
    folder.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        (folder / "server.pid").write_text(pid.format(sleeper=sleeper.pid) + "\n")
        stop_leftovers(device, str(folder.parent))
        assert sleeper.poll() is None
        assert not folder.exists()
        sleeper.kill()


@pytest.mark.parametrize(
    ("content", "taken"),
    [("123\n", "123"), ("-1\n", ""), ("0", ""), ("1\n", ""), ("007\n", ""), ("12 34\n", ""), ("; ls\n", ""), ("", "")],
)
def test_a_process_is_named_by_a_number(tmp_path: Path, content: str, taken: str) -> None:
    (tmp_path / "server.pid").write_text(content)
    assert run("sh", "-c", f'cd {tmp_path}; {READ_PID}; printf %s "$p"') == taken


# --- nothing can be asked ---------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_not_chosen(device: LocalTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as second,
    ):
        for taken in (first.getsockname()[1], second.getsockname()[1]):
            monkeypatch.setattr("mpa_edge.bench.host.llama_server_process.PORTS", (taken, taken + 1))
            with pytest.raises(MpaError, match="local has no free port for llama-server: end what listens there"):
                free_port(device)
    assert free_port(device) == taken


@pytest.mark.parametrize("content", ["#!/bin/sh\necho 'no such option' >&2; exit 1\n", "\x7fELF of another machine\n"])
def test_a_wrong_program_is_one_line(device: LocalTransport, tmp_path: Path, out: Path, content: str) -> None:
    path = tmp_path / "llama-server"
    path.write_text(content)
    path.chmod(0o755)
    with pytest.raises(
        MpaError, match=r"llama-server on local does not start \(.+\): try .* --version there"
    ) as caught:
        ask(device, order(IDS[0]), out, path)
    assert "\n" not in str(caught.value)
    assert running(device) == []


def test_a_damaged_model_is_one_line(device: LocalTransport, server: Path, out: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    for name in ("model-q8_0.gguf", "mmproj-f16.gguf"):
        (remote / "models" / "artifact").mkdir(parents=True, exist_ok=True)
        (remote / "models" / "artifact" / name).write_bytes(b"no model" * 100)
    with pytest.raises(MpaError, match="does not start"):
        ask(device, order(IDS[0]), out, server, str(remote))
    assert running(device) == []
    assert answers(out) == []
