"""What goes wrong on a device: broken models and packages, a killed process, a bundle that was copied manually."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpa_edge.bench.device.protocol import JobOrder, Step
from tests.bench.bundles import answers_of, job, lines_of
from tests.bench.runners import BOTH, EXPORTS, LONGEST_S, changed_copy, everything, ids, run, said, wait_for
from tests.vlm.exported import onnx_folder

pytestmark = [pytest.mark.peer, pytest.mark.slow]

# --- what goes wrong in a process of its own --------------------------------------------------------------------------

FAULTS = """
        words = requests[0].prompt
        if "HANG" in words:
            from time import sleep
            sleep(1000)
        if "CRASH" in words or "KILLED" in words:
            import os, sys
            sys.stderr.write("GGML_ASSERT(false) failed\\n")
            sys.stderr.flush()
            os.kill(os.getpid(), 11 if "CRASH" in words else 9)
        if "MEMORY" in words:
            raise MemoryError
        if "LONG" in words:
            raise MpaError("the prompt is too long: shorten it")
"""
BEGINNING = """        replies: dict[int, Reply] = {}
"""


@pytest.fixture
def faulty(bundles, tmp_path) -> Path:
    """A bundle whose runtime does what the prompt says."""
    return changed_copy(
        bundles["onnx"], tmp_path / "faulty", "mpa_edge/vlm/onnxruntime/model.py", BEGINNING, FAULTS + BEGINNING
    )


def questions(bundle: Path, *prompts: str) -> None:
    row = json.loads((bundle / "questions.jsonl").read_text().splitlines()[0])
    rows = [row | {"id": str(i), "prompt": prompt} for i, prompt in enumerate(prompts)]
    (bundle / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_failure_costs_its_question_only(faulty, tmp_path) -> None:
    questions(faulty, "fine", "CRASH", "fine", "LONG", "HANG", "fine", "MEMORY", "fine")
    steps = tuple(Step(variant, str(i)) for variant in BOTH for i in range(8) if variant == "artifact" or i in (0, 3))
    folder = job(tmp_path / "job", JobOrder(BOTH, steps, threads=1, answer_timeout_s=2.0))
    assert run(faulty, folder) == (1, "")
    assert [(one["variant"], one["id"]) for one in answers_of(folder)] == [
        *(("artifact", str(i)) for i in (0, 2, 5, 7)),
        ("base", "0"),
    ]
    failed = [line.values | {"variant": line.variant} for line in lines_of(folder) if line.kind == "failed"]
    assert [(one["variant"], one["id"], one["reason"]) for one in failed] == [
        ("artifact", "1", "crashed (SIGSEGV): GGML_ASSERT(false) failed"),
        ("artifact", "3", "the prompt is too long: shorten it"),
        ("artifact", "4", "no answer within 2 s"),
        ("artifact", "6", "out of memory"),
        ("base", "3", "the prompt is too long: shorten it"),
    ]
    questions(faulty, *["fine"] * 8)
    assert run(faulty, folder) == (0, "")
    assert len(said(answers_of(folder))) == len(answers_of(folder)) == len(steps)


def test_a_model_that_always_kills_its_process_is_given_up(faulty, tmp_path) -> None:
    questions(faulty, *["KILLED"] * 6)
    steps = (*(Step("artifact", str(i), again) for again in (0, 1) for i in range(6)),)
    folder = job(tmp_path / "job", JobOrder({"artifact": BOTH["artifact"]}, steps, threads=1))
    assert run(faulty, folder) == (1, "")
    lines = lines_of(folder)
    assert [line.kind for line in lines] == [*["loaded", "failed"] * 3, "end"]
    assert lines[1].values["reason"] == "killed (SIGKILL), probably out of memory: GGML_ASSERT(false) failed"
    assert lines[5].values["reason"].endswith("; given up after 3 processes")


@pytest.mark.parametrize("name", ["onnx", "gguf"])
def test_a_damaged_model_is_said_and_the_other_one_goes_on(bundles, tmp_path, name) -> None:
    copy = Path(shutil.copytree(bundles[name].folder, tmp_path / "copy"))
    for path in (copy / "models" / "base").rglob("*.*"):
        if path.suffix in (".onnx", ".gguf"):
            os.truncate(path, path.stat().st_size // 2)
    folder = job(tmp_path / "job", everything(bundles[name]))
    assert run(copy, folder) == (1, "")
    failed = [line for line in lines_of(folder) if line.kind == "failed"]
    assert [line.variant for line in failed] == ["base"]
    assert failed[0].values["reason"].endswith(", or rerun mpa-edge export")
    assert [one["variant"] for one in answers_of(folder)] == ["artifact"] * 8


def test_missing_packages_are_named_with_the_command(bundles, tmp_path) -> None:
    folder = job(tmp_path / "job", everything(bundles["hybrid"]))
    status, err = run(bundles["hybrid"].folder, folder, "-I", "-S")
    python = Path(sys.executable).name
    assert status == 1
    assert err == (
        "error: numpy, pillow, pydantic, llama-cpp-python, gguf, onnxruntime missing on this device: "
        f"{python} -m pip install numpy pillow pydantic llama-cpp-python==0.3.36 gguf onnxruntime\n"
    )
    assert not (folder / "out.jsonl").exists()


@pytest.mark.parametrize("name", EXPORTS)
def test_a_device_needs_no_more_than_it_is_told(bundles, at_home, tmp_path, name) -> None:
    blocked = {"psutil", "pyarrow", "huggingface_hub", "rapidfuzz", "ruamel", "torch", "transformers", "click", "rich"}
    blocked |= {"onnxruntime", "tokenizers"} if name == "gguf" else {"llama_cpp", "gguf"} if name == "onnx" else set()
    blocker = (
        "import sys\nclass Blocker:\n    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {blocked!r}:\n            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    file = "mpa_edge/__init__.py"
    copy = changed_copy(bundles[name], tmp_path / "copy", file, "__version__ =", f"{blocker}__version__ =")
    steps = tuple(Step("artifact", one) for one in ids(bundles[name]))
    folder = job(tmp_path / "job", JobOrder({"artifact": BOTH["artifact"]}, steps, threads=1))
    assert run(copy, folder, "-I") == (0, "")
    assert {one["id"]: (one["text"], one["tokens"]) for one in answers_of(folder)} == at_home[name]


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_a_carried_bundle_in_a_folder_with_an_odd_name(bundles, at_home, tmp_path) -> None:
    home = tmp_path / "a b'; $(touch x)\n-ü"
    copy, folder = Path(shutil.copytree(bundles["onnx"].folder, home / "it")), home / "job 1"
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    done = subprocess.run(
        ["sh", str(copy / "bench.sh"), str(folder), sys.executable],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    answers = answers_of(folder)
    assert {one["id"]: (one["text"], one["tokens"]) for one in answers} == at_home["onnx"]
    assert [one["variant"] for one in answers] == [*["artifact"] * 4, *["base"] * 4]
    for name in ("probe.json", "probe-after.json"):
        assert isinstance(json.loads((folder / name).read_text()), dict)
    assert [json.loads(line) for line in (folder / "watch.jsonl").read_text().splitlines()]
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_the_end_of_bench_sh_ends_everything_that_it_started(bundles, tmp_path) -> None:
    folder = job(tmp_path / "job", everything(bundles["gguf"]))
    process = subprocess.Popen(
        ["sh", str(bundles["gguf"].folder / "bench.sh"), str(folder), sys.executable], start_new_session=True
    )
    wait_for(lambda: (folder / "out.jsonl").exists() and answers_of(folder))
    process.terminate()
    assert process.wait(LONGEST_S) == 128 + signal.SIGTERM
    wait_for(lambda: alive_in(process.pid) == [], within_s=5.0)
    assert not any(line.kind == "end" for line in lines_of(folder))


def alive_in(session: int) -> list[str]:
    """Command lines of the living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((stat.parent / "cmdline").read_text())
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no folder", "make it, the answers go there"),
        ("no json", "is missing or damaged: send the bundle and the job again"),
        ("other question", "which is not here: send the bundle again"),
        ("no questions", "questions.jsonl is missing or damaged: send the bundle again"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(bundles, tmp_path, change, said) -> None:
    copy, folder = Path(shutil.copytree(bundles["onnx"].folder, tmp_path / "copy")), tmp_path / "job"
    if change != "no folder":
        job(folder, JobOrder(BOTH, (Step("artifact", "unknown" if change == "other question" else "0 'ü'"),)))
    if change == "no json":
        (folder / "order.json").write_text('{"steps": ')
    if change == "no questions":
        (copy / "questions.jsonl").unlink()
    status, err = run(copy, folder)
    assert (status, len(err.splitlines())) == (1, 1)
    assert said in err


def test_without_python_and_with_wrong_usage(bundles, tmp_path) -> None:
    script, program = str(bundles["onnx"].folder / "bench.sh"), str(bundles["onnx"].folder / "run.py")
    for command, status, words in (
        (["sh", script], 2, "usage: sh bench.sh JOBDIR"),
        (["sh", script, str(tmp_path / "job"), "python-of-nobody"], 127, "error: no python-of-nobody on this device"),
        ([sys.executable, program], 2, "usage: python3 run.py JOBDIR"),
        ([sys.executable, program, "--help"], 2, "usage: python3 run.py JOBDIR"),
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert done.stderr.startswith(words)
        assert len(done.stderr.splitlines()) == 1


def test_an_order_may_not_name_a_model_outside_of_the_bundle(bundles, tmp_path) -> None:
    outside = {"artifact": os.path.relpath(onnx_folder("student"), bundles["onnx"].folder)}
    folder = job(tmp_path / "job", JobOrder(outside, (Step("artifact", ids(bundles["onnx"])[0]),)))
    assert run(bundles["onnx"].folder, folder) == (1, "")
    assert "not in the bundle" in lines_of(folder)[0].values["reason"]
