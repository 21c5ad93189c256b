"""The real runner, as a device has it, on real exports of the built-in student: ONNX, GGUF, and both together."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpa_edge.bench import page_cache
from mpa_edge.bench.bundle import Bundle, Question, make_bundle
from mpa_edge.bench.lines import JobOrder, Step
from mpa_edge.evaluation import read_samples
from mpa_edge.images import open_image
from mpa_edge.nursery.render import ANSWERS, render
from mpa_edge.types import Request
from mpa_edge.vlm import load
from tests.bench.bundles import TARGET, answers_of, job, lines_of
from tests.vlm.exported import onnx_folder
from tests.vlm.llama_exported import gguf_folder, hybrid_folder

pytestmark = [pytest.mark.peer, pytest.mark.slow]

EXPORTS = {"onnx": onnx_folder, "gguf": gguf_folder, "hybrid": hybrid_folder}
BOTH = {"artifact": "models/artifact", "base": "models/base"}
LONGEST_S = 60.0


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Four questions about two pictures, for each format."""
    home = tmp_path_factory.mktemp("bundles")
    images = render(home / "images", 2, 3, "target", answers_per_image=2)
    asked = [
        Question(id=f"{i} 'ü'", image=one.image, prompt=one.question, max_new_tokens=8)
        for i, one in enumerate(read_samples(images / ANSWERS))
    ]
    return {
        name: make_bundle(
            folder=home / name, target=TARGET, artifact=export("student"), base=export("student"), questions=asked,
            images=images,
        )
        for name, export in EXPORTS.items()
    }  # fmt: skip


def ids(bundle: Bundle) -> list[str]:
    rows = (bundle.folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["id"] for row in rows]


def everything(bundle: Bundle, **changed: object) -> JobOrder:
    """Both models in turn, each question twice."""
    asked = ids(bundle)
    steps = [Step(variant, one, again) for again in (0, 1) for variant in BOTH for one in asked]
    return JobOrder(**({"variants": BOTH, "steps": tuple(steps), "threads": 1} | changed))  # type: ignore[arg-type]


def start(bundle: Path, folder: Path, *options: str, **given: object) -> subprocess.Popen[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *options, str(bundle / "run.py"), str(folder)], env=environment, cwd="/", text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **given,
    )  # type: ignore[call-overload, no-any-return]  # fmt: skip


def run(bundle: Path, folder: Path, *options: str, **given: object) -> tuple[int, str]:
    """(exit status, stderr) of a run; nothing comes on stdout."""
    process = start(bundle, folder, *options, **given)
    out, err = process.communicate(timeout=LONGEST_S)
    assert out == ""
    return process.returncode, err


def said(answers: list[dict]) -> dict[tuple[str, str, int], tuple[str, int]]:
    return {(one["variant"], one["id"], one["repetition"]): (one["text"], one["tokens"]) for one in answers}


@pytest.fixture(scope="session")
def at_home(bundles: dict[str, Bundle]) -> dict[str, dict[str, tuple[str, int]]]:
    """What the same exports answer in this process, each question alone."""
    found: dict[str, dict[str, tuple[str, int]]] = {}
    for name, bundle in bundles.items():
        model = load(str(EXPORTS[name]("student")), name="host", threads=1)
        rows = [json.loads(row) for row in (bundle.folder / "questions.jsonl").read_text().splitlines()]
        found[name] = {}
        for row in rows:
            reply = model.answer([Request(open_image(bundle.folder / row["image"]), row["prompt"], 8)])[0]  # type: ignore[arg-type]
            found[name][row["id"]] = (reply.text, reply.n_tokens)
        model.close()
    return found


def changed_copy(bundle: Bundle, folder: Path, file: str, before: str, after: str) -> Path:
    """A copy of a bundle with one place of its code replaced."""
    copy = Path(shutil.copytree(bundle.folder, folder))
    text = (copy / file).read_text(encoding="utf-8")
    assert text.count(before) == 1
    (copy / file).write_text(text.replace(before, after), encoding="utf-8")
    return copy


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
def test_a_picture_is_looked_at_each_time(bundles, tmp_path, name) -> None:
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
    can_be_cold = page_cache.drop(weights)
    with weights[0].open("rb") as file:
        file.read()
    assert page_cache._in_memory(weights[0])
    folder = job(tmp_path / "job", JobOrder({"artifact": BOTH["artifact"]}, (Step("artifact", ids(bundle)[0]),)))
    assert run(copy, folder) == (0, "")
    assert [line.values["cold"] for line in lines_of(folder) if line.kind == "loaded"] == [can_be_cold]
    assert not page_cache.drop([])
    in_memory = Path(shutil.copy(weights[0], "/dev/shm"))
    assert not page_cache.drop([in_memory])
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


def wait_for(condition, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


# --- what goes wrong in a process of its own --------------------------------------------------------------------------

FAULTS = """
        words = requests[0].prompt
        if "HANG" in words:
            import time
            time.sleep(1000)
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
    return changed_copy(bundles["onnx"], tmp_path / "faulty", "lib/mpa_edge/vlm/onnx.py", BEGINNING, FAULTS + BEGINNING)


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
        *(("artifact", str(i)) for i in (0, 2, 5, 7)), ("base", "0"),
    ]  # fmt: skip
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
    assert failed[0].values["reason"].endswith(", or export again")
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
    file = "lib/mpa_edge/__init__.py"
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
        ["sh", str(copy / "bench.sh"), str(folder), sys.executable], cwd="/", capture_output=True, text=True,
        timeout=LONGEST_S, check=False,
    )  # fmt: skip
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
