"""A whole benchmark by command line: on this machine, over ssh, by hand, killed in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from mpa_edge.bench.report.read import read_bench
from mpa_edge.bench.results.records import METRICS
from mpa_edge.evaluation.predict import EvalSpec, ask
from mpa_edge.questions.own import read_questions
from mpa_edge.runs.files import read_json, write_json
from mpa_edge.tasks import answer_prompt, get_task
from mpa_edge.types import Request
from mpa_edge.vlm import load
from tests.bench import llama_server, peers
from tests.bench.runs import run_folder
from tests.forks import Forks

pytestmark = [pytest.mark.slow, pytest.mark.peer, pytest.mark.timeout(300)]

SMALL = ("--questions", "60", "--timed", "2", "--threads", "1")
KEYS = [
    "bundle_sha256",
    "target",
    "emulated",
    "environment",
    "accuracy",
    "latency",
    "memory",
    "energy",
    "budgets",
    "verdict",
    "reasons",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("device")


@pytest.fixture(scope="module")
def run(forks: Forks, tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """Benchmarked on this machine: artifact and base are exported, host answers and bundle are there."""
    folder = run_folder(tmp_path_factory.mktemp("runs") / "mine")
    done = forks("bench", folder, "--as", "onnx-int8", *SMALL, "--root", root, "--json")
    assert done.rc == 0, done.stderr
    (folder / "first.json").write_text(done.stdout)
    return folder


def results(run: Path, target: str = "cpu") -> Path:
    return run / "bench" / target / "onnx-int8"


def answers(run: Path) -> dict[str, str]:
    return {row.id: row.artifact for row in read_bench(results(run)).answers}


def copy_of(run: Path, to: Path) -> Path:
    """A run of its own, not measured yet."""
    copied = Path(shutil.copytree(run, to / "mine"))
    shutil.rmtree(results(copied))
    return copied


def test_one_document_with_everything_that_was_promised(run: Path) -> None:
    document = json.loads((run / "first.json").read_text())
    assert [key for key in KEYS if key not in document] == []
    assert (document["target"], document["emulated"], document["verdict"]) == ("cpu", False, "holds")
    for name in ("base", "aligned", "artifact"):
        assert document["accuracy"][name]["n"] == 60
        low, high = document["accuracy"][name]["ci95"]
        assert low <= document["accuracy"][name]["value"] <= high
    assert document["accuracy"]["aligned"]["value"] > document["accuracy"]["base"]["value"] + 0.2
    assert document["accuracy"]["retained_gain"] > 0.9
    assert set(document["latency"]) == set(METRICS)
    for name in ("preprocess_s", "vision_encode_s", "prefill_s", "ttft_s", "tpot_s"):
        assert document["latency"][name]["n"] == 10
        assert 0 < document["latency"][name]["p50"] <= document["latency"][name]["p99"] < 30
    assert document["latency"]["load_s"]["n"] == 1
    assert document["base_latency"]["ttft_s"]["n"] == 10
    assert 30e6 < document["memory"]["peak_bytes"] < 2e9
    assert "VmHWM" in document["memory"]["method"]
    assert document["environment"]["runtime"].startswith("onnxruntime")
    assert document["environment"]["threads"] == 1
    assert [line["name"] for line in document["budgets"]] == ["memory_bytes", "ttft_s", "tokens_per_s"]
    for line, word in zip(document["budgets"], ("MB of weights", "OP for an image", "B a token"), strict=True):
        assert word in line["why"]
        assert line["limit"] > 0


def test_the_device_answers_as_the_export_does_on_the_host(run: Path) -> None:
    drawn = next((run / "bench" / ".answers" / "questions").rglob("answers.jsonl"))
    vlm = load(str(run / "exports" / "onnx-int8"), name="host", threads=1)
    spec = EvalSpec(read_questions(drawn, 20), get_task("minicharts"), max_new_tokens=16, max_pixels=10**8)
    replies = ask(vlm, spec, spec.questions.samples)
    assert {sample_id: reply.text for sample_id, reply in replies.items()}.items() <= answers(run).items()


def test_a_second_time_nothing_is_asked_and_fresh_asks_again(forks: Forks, run: Path, root: Path) -> None:
    words = ("bench", run, "--as", "onnx-int8", *SMALL, "--root", root, "--json")
    again = forks(*words)
    assert again.stdout == (run / "first.json").read_text()
    assert "measured before" in again.stderr
    before = answers(run)
    fresh = forks(*words, "--fresh")
    assert fresh.rc == 0, fresh.stderr
    assert json.loads(fresh.stdout)["created"] != json.loads(again.stdout)["created"]
    assert answers(run) == before


def test_killed_in_the_middle_it_goes_on(run: Path, tmp_path: Path) -> None:
    copied, out = copy_of(run, tmp_path), None
    words = [
        sys.executable,
        "-m",
        "mpa_edge",
        "bench",
        str(copied),
        "--as",
        "onnx-int8",
        *SMALL,
        "--root",
        str(tmp_path),
    ]
    for _ in range(2):
        client = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        out = results(copied) / "device" / "out.jsonl"
        peers.until(lambda path=out: path.is_file() and path.read_text().count('"answer"') > 3, 120)
        os.killpg(client.pid, signal.SIGKILL)
        client.wait()
        assert not (results(copied) / "bench.json").exists()
        time.sleep(0.1)
    done = subprocess.run(words, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "resuming the job" in done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    keys = [(x["variant"], x["values"]["id"], x["values"]["repetition"]) for x in lines if x["kind"] == "answer"]
    assert len(keys) == len(set(keys)) == 60 + 2 * 2 * 5
    assert answers(copied) == answers(run)


def test_over_ssh(forks: Forks, run: Path, tmp_path: Path) -> None:
    copied = copy_of(run, tmp_path)
    with peers.sshd(tmp_path / "sshd") as peer:
        words = ("bench", copied, "--as", "onnx-int8", *SMALL, "--via", peer.via, "--root", tmp_path / "there")
        done = forks(*words, "--python", sys.executable, "--json", env={"MPA_EDGE_SSH_CONFIG": peer.config_file})
    assert done.rc == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["verdict"] == "holds"
    assert document["environment"]["transport"].startswith("ssh ")
    assert document["bundle_sha256"] == json.loads((run / "first.json").read_text())["bundle_sha256"]
    assert answers(copied) == answers(run)


def test_a_soak_survives_its_client_and_ends_early_by_ctrl_c(run: Path, tmp_path: Path) -> None:
    copied = copy_of(run, tmp_path)
    words = [sys.executable, "-m", "mpa_edge", "bench", str(copied), "--as", "onnx-int8", "--timed", "3"]
    words += ["--threads", "1", "--root", str(tmp_path / "there"), "--json", "--soak"]
    out, document = results(copied) / "soak" / "device" / "out.jsonl", results(copied) / "soak" / "soak.json"

    def samples() -> int:
        return out.read_text().count('"sample"') if out.is_file() else 0

    client = subprocess.Popen([*words, "5s"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peers.until(lambda: samples() > 5, 120)
    client.kill()
    client.wait()
    assert not document.exists()
    done = subprocess.run([*words, "5s"], capture_output=True, text=True, timeout=250)
    assert done.returncode in (0, 3), done.stderr  # a process of seconds may still grow
    assert "resuming the job" in done.stderr
    made = json.loads(done.stdout)
    assert made == json.loads(document.read_text())
    assert (made["scheme"], made["concurrency"], made["processes"], made["changed"]) == ("onnx-int8", 1, 1, 0)
    assert made["seconds"] == pytest.approx(5, abs=1.5)
    assert made["answers"] > len(made["points"]) > 20
    assert 0 < made["latency_s"]["p50"] <= made["latency_s"]["p95"] <= made["latency_s"]["p99"]
    assert made["memory"]["verdict"] in ("steady", "leaks")
    assert all(point["rss_bytes"] > 30e6 for point in made["points"])
    # an hour, ended by hand
    out.unlink()  # of the soak before
    client = subprocess.Popen([*words, "1h"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peers.until(lambda: samples() > 2, 120)
    client.send_signal(signal.SIGINT)
    said, err = client.communicate(timeout=120)
    assert client.returncode == 0, err
    early = json.loads(said)
    assert (early["asked_s"], early["memory"]["verdict"]) == (3600, "too short")
    assert 0 < early["seconds"] < 60
    assert "stopping after" in err


def test_carried_by_hand(forks: Forks, run: Path, tmp_path: Path) -> None:
    copied, tar = copy_of(run, tmp_path), tmp_path / "device.tar"
    made = forks("bundle", copied, "--as", "onnx-int8", *SMALL, "--out", tar, "--json")
    assert made.rc == 0, made.stderr
    (bundle,) = json.loads(made.stdout)["bundles"]
    subprocess.run(["tar", "-xf", tar, "-C", tmp_path], check=True, timeout=120)
    (there,) = tmp_path.glob("mpa-edge-*")
    ran = subprocess.run(
        ["sh", there / "bench.sh", tmp_path / "job", sys.executable],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": ""},
        cwd="/",
    )
    assert ran.returncode == 0, ran.stderr
    read = forks("bench", copied, "--as", "onnx-int8", *SMALL, "--results", tmp_path / "job", "--json")
    assert read.rc == 0, read.stderr
    document = json.loads(read.stdout)
    assert (document["verdict"], document["bundle_sha256"]) == ("holds", bundle["sha256"])
    assert document["environment"]["transport"] == "manual copy"
    assert answers(copied) == answers(run)
    out = tmp_path / "job" / "out.jsonl"
    # lines that nobody asked for change nothing but are named
    fast = {"text": "no", "tokens": 3, "ttft_s": 1e-6, "uptime_s": 1e308}
    with out.open("a") as file:
        for line in [json.loads(text) for text in out.read_text().splitlines()]:
            more = line | {"values": line["values"] | fast}
            file.write(json.dumps(more) + "\n" + json.dumps(more | {"variant": "teacher"}) + "\n")
    again = forks("bench", copied, "--as", "onnx-int8", *SMALL, "--results", tmp_path / "job", "--json")
    found = json.loads(again.stdout)
    assert (found["latency"], found["accuracy"]) == (document["latency"], document["accuracy"])
    assert "do not count" in found["reasons"][-1]
    # answers of another bundle are refused, and the earlier result stays
    good = (results(copied) / "bench.json").read_bytes()
    fewer = ("--questions", "50", "--timed", "2", "--threads", "1")
    other = forks("bench", copied, "--as", "onnx-int8", *fewer, "--results", tmp_path / "job")
    assert other.rc == 1
    assert "are of other models or questions than those of the run now" in other.stderr
    # as is a job that was cut: nothing of the earlier result is lost
    out.write_text("".join(out.read_text().splitlines(keepends=True)[:20]))
    cut = forks("bench", copied, "--as", "onnx-int8", *SMALL, "--results", tmp_path / "job")
    assert (cut.rc, "answers are missing" in cut.stderr) == (1, True)
    assert (results(copied) / "bench.json").read_bytes() == good


def test_a_lost_gain_exits_with_3(forks: Forks, run: Path, tmp_path: Path) -> None:
    """The export in the place of the aligned model's is that of base: as if the adapter had not been merged."""
    copied = copy_of(run, tmp_path)
    export = copied / "exports" / "onnx-int8"
    right = read_json(export / "manifest.json")["inputs"]
    shutil.rmtree(export)
    shutil.copytree(copied / "bench" / "base" / "onnx-int8", export)
    write_json(export / "manifest.json", read_json(export / "manifest.json") | {"inputs": right})
    done = forks("bench", copied, "--as", "onnx-int8", *SMALL, "--no-base", "--root", tmp_path / "there")
    assert done.rc == 3, done.stderr
    assert "lost" in done.stdout
    assert "less than 50% of the gain is left" in done.stdout
    assert read_json(results(copied) / "bench.json")["verdict"] == "lost"


def test_an_export_of_other_weights_is_made_again(forks: Forks, run: Path, tmp_path: Path) -> None:
    """The merged weights are those of base now: its export must not be judged by what aligned once answered."""
    copied = copy_of(run, tmp_path)
    base = run.parent / f"{run.name}-base"
    shutil.copy(base / "model.safetensors", copied / "merged" / "model.safetensors")
    plan = forks("bench", copied, "--as", "onnx-int8", "--dry-run")
    assert "onnx-int8 (to be exported)" in plan.stdout
    done = forks("bench", copied, "--as", "onnx-int8", *SMALL, "--no-base", "--root", tmp_path / "there", "--json")
    assert done.rc == 0, done.stderr
    assert "the model has changed since this export" in done.stderr
    document = json.loads(done.stdout)
    assert document["verdict"] == "inconclusive"
    assert document["accuracy"]["aligned"] == document["accuracy"]["base"]
    assert abs(document["accuracy"]["artifact"]["value"] - document["accuracy"]["base"]["value"]) < 0.1


def test_a_phone_without_python(forks: Forks, tmp_path: Path) -> None:
    """Over adb, asked through llama-server; this machine is no phone, so timings do not count, and answers do."""
    run, asked = run_folder(tmp_path / "mine"), ("--questions", "8", "--timed", "1", "--threads", "1")
    with peers.adbd(tmp_path / "adb") as peer:
        words = ("bench", run, "--target", "phone", "--as", "gguf-q8_0", "--no-base", *asked, "--via", peer.via)
        server = llama_server.program(tmp_path)
        done = forks(*words, "--root", tmp_path / "phone", "--server", server, "--json", env=peer.env)
    assert done.rc == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["verdict"], document["accuracy"]["artifact"]["n"]) == ("invalid", 8)
    assert document["timings"].startswith("invalid: measured on x86_64, and target phone is aarch64")
    assert document["latency"]["ttft_s"]["n"] == 5
    assert document["latency"]["vision_encode_s"]["p50"] is None
    assert any("llama-server" in line for line in document["not_timed"])
    assert document["memory"]["peak_bytes"] > 10e6
    watched = (run / "bench" / "phone" / "gguf-q8_0" / "device" / "watch.jsonl").read_text().splitlines()
    assert all(json.loads(line)["uptime_s"] > 0 for line in watched)
    assert watched
    vlm = load(str(run / "exports" / "gguf-q8_0"), name="host", threads=1)
    (drawn,) = (run / "bench" / ".answers" / "questions").rglob("answers.jsonl")
    for row in read_bench(run / "bench" / "phone" / "gguf-q8_0").answers[:4]:
        image = Image.open(drawn.parent / row.image).convert("RGB")
        (reply,) = vlm.answer([Request(image, answer_prompt(get_task("minicharts"), row.question), 16)])
        assert reply.text == row.artifact


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere",), "no folder 'nowhere': name a run that mpa-edge align made"),
        (("RUN", "--as", "onnx-int8", "--via", "telnet://orin"), "--via telnet://orin is unknown"),
        (("RUN", "--as", "onnx-int7"), "no scheme 'onnx-int7'"),
        (("RUN", "--target", "toaster"), "no target 'toaster'"),
        (("RUN", "--as", "onnx-int8", "--questions", "5", "--timed", "6"), "--timed 6 is more than --questions 5"),
        (("RUN", "--as", "onnx-int8", "--results", "/nowhere"), "/nowhere has no out.jsonl"),
        (("RUN", "--sweep", "colour"), "no axis 'colour'"),
        (("RUN", "--soak", "90"), "'90' is no time up to 8h: write 90s, 30m or 2h"),
        (("RUN", "--soak", "1m", "--sweep", "threads"), "--soak is a measurement of its own"),
        (("RUN", "--concurrency", "2"), "--concurrency is for a soak: add --soak TIME"),
        (("RUN", "--as", "onnx-int8", "--soak", "1m", "--concurrency", "2"), "name it with --server PATH"),
        (("RUN", "--as", "onnx-int8", "--python", "/no/python", *SMALL), "there is no /no/python"),
    ],
)
def test_wrong_input_is_one_line(forks: Forks, run: Path, root: Path, words: tuple[str, ...], said: str) -> None:
    asked = [str(run) if word == "RUN" else word for word in words]
    done = forks("bench", *asked, "--root", root)
    assert done.rc in (1, 2), done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert said in last
    assert "Traceback" not in done.stderr


def test_a_sweep_recommends_one_setting(forks: Forks, run: Path, root: Path) -> None:
    words = ("--questions", "20", "--timed", "2", "--root", root, "--json")
    done = forks("bench", run, "--as", "onnx-int8", "--sweep", "threads=1:2", *words)
    assert done.rc == 0, done.stderr
    document = json.loads(done.stdout)
    assert [point["settings"]["threads"] for point in document["points"]] == [1, 2]
    assert document["points"][document["recommended"]]["on_front"]
    assert json.loads((run / "bench" / "cpu" / "sweep.json").read_text()) == document
