"""The whole benchmark on another instruction set: arm64 programs under qemu-user, reached by a real ssh server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpa_edge.bench.host.pipeline import run_bench
from mpa_edge.bench.measurement import DEVICE, Bench, Effort, Reach
from mpa_edge.bench.results.records import ANSWERS, BENCH, AnswerRow, BenchReport
from mpa_edge.config.library import load_recipe, load_target
from mpa_edge.evaluation.predict import question_set
from mpa_edge.images.folder import open_image
from mpa_edge.runs.files import read_json
from mpa_edge.runs.manifest import FOLDERS
from mpa_edge.tasks import answer_prompt, get_task
from mpa_edge.types import Request
from mpa_edge.vlm import load, resolve
from tests.bench.arm64 import arm64_device
from tests.bench.bundles import lines_of
from tests.bench.peers import SshPeer
from tests.vlm.llama_exported import scheme_folder

# two minutes where nothing else runs; emulation takes a share of what other programs leave
pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(900)]

RUNTIMES = {
    "onnx-int8": ("onnxruntime 1.", "CPUExecutionProvider"),
    "gguf-q8_0": ("llama-cpp-python 0.", "llama.cpp CPU"),
}
N, TIMED, REPETITIONS = 6, 1, 5
# 8-bit sums are rounded by other instructions there
MOST_OTHER_ANSWERS = 1


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshPeer]:
    with arm64_device(tmp_path_factory.mktemp("arm64")) as peer:
        yield peer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that changed nothing: what is measured here is the way, not the gain."""
    run = tmp_path_factory.mktemp("runs") / "unchanged"
    shutil.copytree(resolve("nursery:student"), run / FOLDERS["merge"])
    return run


@pytest.fixture(scope="module", params=RUNTIMES)
def bench(request: pytest.FixtureRequest, run: Path, device: SshPeer) -> Bench:
    """A benchmark that has been run."""
    bench = Bench(
        run=run,
        recipe=load_recipe("minicharts", ["threads=1"]),
        target=load_target("cpu"),
        scheme=request.param,
        artifact=scheme_folder("student", request.param),
        base=None,
        reach=Reach(device.via),
        effort=Effort(N, TIMED, REPETITIONS),
        threads=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPA_EDGE_SSH_CONFIG", device.config_file)
        run_bench(bench)
    return bench


@pytest.fixture(scope="module")
def report(bench: Bench) -> BenchReport:
    return BenchReport.model_validate(read_json(bench.results / BENCH), strict=False)


@pytest.fixture(scope="module")
def rows(bench: Bench) -> list[AnswerRow]:
    texts = (bench.results / ANSWERS).read_text(encoding="utf-8").splitlines()
    return [AnswerRow.model_validate(json.loads(text), strict=False) for text in texts]


def on_the_host(bench: Bench) -> list[str]:
    """What the same files answer on this machine's own processor."""
    config = bench.recipe.evaluate.model_copy(update={"n": N})
    questions = question_set(config, bench.run / "questions")
    images, samples = questions.folder, questions.samples
    task, model = get_task(bench.recipe.task), load(str(bench.artifact), name="host", threads=1)
    asked = [Request(open_image(images / one.image), answer_prompt(task, one.question)) for one in samples]  # type: ignore[arg-type]
    said = [model.answer([request])[0].text for request in asked]
    model.close()
    return said


def test_every_question_is_answered_once_by_an_arm64_runtime(bench: Bench, report: BenchReport) -> None:
    lines = lines_of(bench.results / DEVICE)
    first = [line.values["id"] for line in lines if line.kind == "answer" and line.values["repetition"] == 0]
    assert len(first) == len(set(first)) == N
    assert len([line for line in lines if line.kind == "answer"]) == N + TIMED * REPETITIONS
    assert all(line.values["same_pixels"] for line in lines if line.kind == "answer")
    runtime, backend = RUNTIMES[bench.scheme]
    assert report.environment.runtime.startswith(runtime)
    assert (report.environment.machine, report.environment.backend) == ("aarch64", backend)
    assert report.environment.cpu == "Neoverse-N1"
    assert {"asimddp", "fphp"} <= set(report.environment.cpu_features)
    assert report.environment.os.startswith("Debian GNU/Linux 13")


def test_an_emulated_run_says_nothing_about_time(report: BenchReport) -> None:
    assert report.emulated
    assert report.timings.startswith("invalid: emulated")
    assert report.verdict == "invalid"
    assert any("qemu-aarch64" in reason for reason in report.reasons)
    assert {line.name for line in report.budgets} == {"memory_bytes", "ttft_s", "tokens_per_s"}
    assert [line.met for line in report.budgets] == [None] * 3
    assert report.energy is None


def test_its_accuracy_counts(bench: Bench, report: BenchReport, rows: list[AnswerRow]) -> None:
    said, host = [row.artifact for row in rows], on_the_host(bench)
    others = sum(one != other for one, other in zip(said, host, strict=True))
    print(f"{bench.scheme}: {others} of {N} answers differ from this machine's own")
    assert others <= MOST_OTHER_ANSWERS
    assert report.accuracy.artifact.n == report.accuracy.aligned.n == N
    assert report.accuracy.artifact.correct == sum(row.scores[2] for row in rows) > 0
    assert report.accuracy.base == report.accuracy.aligned
    assert abs(report.accuracy.artifact.value - report.accuracy.aligned.value) <= MOST_OTHER_ANSWERS / N + 1e-9
    assert report.accuracy_verdict == "inconclusive"
