"""Real servers of the OpenAI protocol on the built-in teacher: they must say what the checkpoint says here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mpa_edge.config import library
from mpa_edge.config.library import load_recipe
from mpa_edge.config.recipe import EvaluateConfig, ImagesConfig, Recipe
from mpa_edge.evaluation.predict import question_set, with_silver
from mpa_edge.images.folder import open_image
from mpa_edge.nursery.render import render
from mpa_edge.runs.parquet import read_dropped, read_parts
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.stages.identify import run_identify
from mpa_edge.stages.run import Run
from mpa_edge.stages.silver import run_silver
from mpa_edge.stages.teacher import total_usage, usage_of
from mpa_edge.tasks import get_task
from mpa_edge.types import Drop, ParityRecord, PseudoAnnotation, Reply, Request
from mpa_edge.vlm import load, resolve
from tests.vlm.exported import TEACHER
from tests.vlm.llama_exported import gguf_folder

pytestmark = pytest.mark.peer
ROOT = Path(__file__).parents[2]
IMAGES, START_S = 6, 120.0
TRANSFORMERS = "from transformers.cli.transformers import main; main()"


@dataclass(frozen=True)
class Peer:
    """A server that runs."""

    reference: str
    exact: bool
    """Whether it computes with the same numbers: llama.cpp's weights are 16 bits wide, and a near tie may tip."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


@contextmanager
def running(words: list[str], port: int, model: str, log: Path, exact: bool) -> Iterator[Peer]:
    """A server as a process of its own, from the moment it answers until it is ended."""
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("wb") as out:
        server = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=quiet, cwd=ROOT)
        try:
            until_it_answers(server, f"http://127.0.0.1:{port}/health", log)
            yield Peer(f"openai:http://127.0.0.1:{port}/v1#{model}", exact)
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(10)


def until_it_answers(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")


@contextmanager
def transformers_serve(folder: Path) -> Iterator[Peer]:
    model, port = resolve("nursery:teacher"), free_port()
    words = [
        sys.executable,
        "-c",
        TRANSFORMERS,
        "serve",
        model,
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with running(words, port, model, folder / "transformers.log", exact=True) as peer:
        yield peer


@contextmanager
def llama_server(folder: Path) -> Iterator[Peer]:
    model, port = gguf_folder(TEACHER), free_port()
    words = [
        sys.executable,
        "-m",
        "tests.bench.llama_server",
        "-m",
        str(model / "model-f16.gguf"),
        "--mmproj",
        str(model / "mmproj-f16.gguf"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--alias",
        "teacher",
        "-t",
        "1",
        "-c",
        "2048",
        "-np",
        "2",
        "-b",
        "512",
        "-ub",
        "512",
        "--cache-ram",
        "0",
        "--no-warmup",
        "--fit",
        "off",
        "-fa",
        "off",
    ]
    with running(words, port, "teacher", folder / "llama.log", exact=False) as peer:
        yield peer


@pytest.fixture(scope="module", params=[transformers_serve, llama_server], ids=["transformers", "llama.cpp"])
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with request.param(tmp_path_factory.mktemp("peer")) as made:
        yield made


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Request]:
    """Questions with short answers, and questions that the teacher is to write."""
    task = get_task("minicharts")
    questions = question_set(EvaluateConfig(n=24), tmp_path_factory.mktemp("questions"))
    folder, samples = questions.folder, questions.samples
    opened = {sample.image: open_image(folder / sample.image, 10**6) for sample in samples}
    images = {name: image for name, image in opened.items() if not isinstance(image, Drop)}
    answers = [Request(images[sample.image], sample.question, 16) for sample in samples]
    prompts = task.annotation_prompts
    return answers + [Request(image, prompts[i % len(prompts)], 48) for i, image in enumerate(images.values())]


@pytest.fixture(scope="module")
def expected(asked: list[Request]) -> list[Reply]:
    vlm = load("nursery:teacher", name="teacher", device="cpu", threads=1)
    replies = vlm.answer(asked)
    vlm.close()
    return replies


def recipe(teacher: str) -> Recipe:
    # five samples: each prompt once, so that all of them are greedy
    wanted = [f"teacher='{teacher}'", f"images.render.n={IMAGES}", "annotate.shard_size=4", "device=cpu", "threads=1"]
    return load_recipe("minicharts", [*wanted, "teacher_server.wait_s=20", "teacher_server.concurrency=4"])


def rows_of(run: Run) -> tuple[list[PseudoAnnotation], list[ParityRecord], list[str]]:
    """What annotate and identify make of a run."""
    run_annotate(run)
    run_identify(run)
    annotations = read_parts(run.stage_folder("annotate"), PseudoAnnotation)
    dropped = [row.reason for row in read_dropped(run.stage_folder("annotate"))]
    return annotations, read_parts(run.stage_folder("identify"), ParityRecord), dropped


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[PseudoAnnotation], list[ParityRecord], list[str]]:
    return rows_of(Run(tmp_path_factory.mktemp("runs") / "local", recipe("nursery:teacher")))


def test_a_server_says_what_the_checkpoint_says(peer: Peer, asked: list[Request], expected: list[Reply]) -> None:
    vlm = load(peer.reference, name="teacher")
    replies = vlm.answer(asked)
    vlm.close()
    pairs = zip(replies, expected, strict=True)
    other = [(one.text, here.text) for one, here in pairs if (one.text, one.n_tokens) != (here.text, here.n_tokens)]
    assert len(other) <= (0 if peer.exact else 2), other
    assert {reply.finish_reason for reply in replies} == {"stop"}


def test_annotate_and_identify_give_the_same_rows(peer: Peer, local, tmp_path: Path) -> None:
    run = Run(tmp_path / "served", recipe(peer.reference))
    annotations, judged, dropped = rows_of(run)
    assert len(annotations) > 2 * IMAGES
    assert {row.verdict for row in judged} >= {"gap", "parity"}
    if peer.exact:
        assert (annotations, judged, dropped) == local
    assert len({*annotations} & {*local[0]}) >= 0.9 * len(local[0])
    assert len({*judged} & {*local[1]}) >= 0.9 * len(local[1])
    used = total_usage(run)
    assert used is not None
    assert (used.requests, used.failures, used.uncounted) == (5 * IMAGES + len(annotations), 0, 0)
    assert used.tokens_in > 60 * used.requests


def test_a_server_writes_the_held_out_questions_as_the_checkpoint_does(peer: Peer, tmp_path: Path) -> None:
    """Its answers to a task of one's own, for which nobody knows them; all votes but the first are sampled."""
    own = library.load("tasks", "minicharts").model_copy(update={"name": "mine"})

    def silver_of(teacher: str, name: str) -> tuple[Run, dict[str, tuple[str, str]]]:
        asked = recipe(teacher)
        asked = asked.model_copy(update={"task": own, "evaluate": asked.evaluate.model_copy(update={"votes": 3})})
        run = Run(tmp_path / name, asked.model_copy(update={"images": ImagesConfig(path=str(tmp_path / "images"))}))
        run_silver(run)
        found = question_set(with_silver(run.recipe, run.folder).evaluate, tmp_path)
        assert found.truth == "teacher"
        return run, {sample.id: (sample.question, sample.answers[0]) for sample in found.samples}

    render(tmp_path / "images", 12, 3, "target")
    here = silver_of("nursery:teacher", "here")[1]
    run, there = silver_of(peer.reference, "there")
    assert len(there) > 10
    # not all of them: what is said every time depends on the draws
    assert len({*here.items()} & {*there.items()}) > 0.7 * max(len(here), len(there))
    used = usage_of(run, "silver")
    assert used is not None
    assert (used.requests > 4 * len(there), used.failures) == (True, 0)


def test_a_cut_answer_says_so(peer: Peer, asked: list[Request]) -> None:
    vlm = load(peer.reference, name="teacher")
    (reply,) = vlm.answer([Request(asked[-1].image, asked[-1].prompt, max_new_tokens=5)])
    vlm.close()
    assert (reply.finish_reason, reply.n_tokens) == ("length", 5)
