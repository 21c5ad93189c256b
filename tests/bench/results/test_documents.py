"""One word for a benchmark, and the files that hold it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mpa_edge.bench.device.protocol import JobOrder, Line, Step
from mpa_edge.bench.measurement import Bench
from mpa_edge.bench.report.read import read_bench
from mpa_edge.bench.results import documents
from mpa_edge.bench.results.documents import (
    Evidence,
    answer_rows,
    busy,
    peak_memory,
    report_of,
    require_all,
    write_documents,
)
from mpa_edge.bench.results.records import METRICS, THUMBNAILS
from mpa_edge.bench.results.timing import order
from mpa_edge.config.library import load_recipe, load_target
from mpa_edge.errors import MpaError
from mpa_edge.planning.budgets import Limit
from mpa_edge.tasks import get_task
from mpa_edge.types import Prediction

N = 120
IDS = [f"q{i}" for i in range(N)]
LIMITS = {"memory_bytes": Limit(2e8, "memory"), "ttft_s": Limit(1.0, "time"), "tokens_per_s": Limit(50.0, "speed")}
PROBE = {"machine": "x86_64", "emulated": False, "affinity": "0-1"}


def bench(target: str = "cpu") -> Bench:
    return Bench(
        run=Path("runs/mine"),
        recipe=load_recipe("minicharts"),
        target=load_target(target),
        scheme="onnx-int8",
        artifact=Path("a"),
        base=Path("b"),
    )


def said(right: Sequence[bool]) -> list[Prediction]:
    return [prediction(name, "yes" if good else "no", float(good)) for name, good in zip(IDS, right, strict=True)]


def prediction(question: str, text: str, score: float, accepted: str = "yes") -> Prediction:
    return Prediction(
        sample_id=question,
        image_id=f"{question}.png",
        kind=None,
        question="?",
        answers=(accepted,),
        model="m",
        text=text,
        score=score,
    )


def evidence(share_right: float, ttft_s: float = 0.1) -> Evidence:
    steps = order(IDS, repetitions=5, timed_ids=IDS[:4], variants=["artifact", "base"], seed=0)
    asked = JobOrder({"artifact": "models/artifact", "base": "models/base"}, steps)
    lines = [Line("loaded", "artifact", 0, {"load_s": 0.5, "cold": True, "runtime": "onnxruntime 1", "threads": 2})]
    for step in steps:
        good = IDS.index(step.id) < share_right * N
        values = {"id": step.id, "repetition": step.repetition, "text": "yes" if good else "no", "tokens": 3}
        lines.append(Line("answer", step.variant, 0, values | {"ttft_s": ttft_s, "tpot_s": 0.01, "tokens_per_s": 100}))
    lines.append(Line("memory", "artifact", 0, {"peak_bytes": 10**8, "method": "VmHWM"}))
    return Evidence(asked, lines, PROBE, [], "local", 5_000_000)


BASE, ALIGNED = said([i < 0.4 * N for i in range(N)]), said([i < 0.8 * N for i in range(N)])


@pytest.mark.parametrize(("share", "word"), [(0.8, "holds"), (0.4, "lost"), (0.63, "inconclusive"), (0.1, "lost")])
def test_the_word_follows_the_answers_on_the_device(share: float, word: str) -> None:
    report, _, _ = report_of(bench(), "0" * 64, BASE, ALIGNED, evidence(share), LIMITS)
    assert (report.verdict, report.accuracy_verdict, report.timings) == (word, word, "valid")
    assert report.accuracy.artifact.correct == round(share * N)
    assert report.reasons
    assert (report.n_to_settle is not None) == (word == "inconclusive")
    assert set(report.latency) == set(report.base_latency) == set(METRICS)
    assert report.latency["ttft_s"].n == 20
    assert report.latency["load_s"].p50 == 0.5
    assert report.latency["vision_encode_s"].p50 is None
    assert [line.met for line in report.budgets] == [True, True, True]


def test_an_emulated_device_gives_an_accuracy_and_no_verdict_on_time() -> None:
    emulated = {"machine": "aarch64", "emulated": True, "emulated_why": "qemu-aarch64"}
    report, _, _ = report_of(bench("jetson"), "0" * 64, BASE, ALIGNED, replace(evidence(0.8), before=emulated), LIMITS)
    assert (report.verdict, report.accuracy_verdict, report.emulated) == ("invalid", "holds", True)
    assert report.timings == "invalid: emulated: qemu-aarch64"
    assert [(line.met, line.measured, line.by) for line in report.budgets] == [(None, None, None)] * 3
    assert report.energy is None
    assert report.accuracy.artifact.value == pytest.approx(0.8)
    lost, _, _ = report_of(bench("jetson"), "0" * 64, BASE, ALIGNED, replace(evidence(0.4), before=emulated), LIMITS)
    assert lost.verdict == "lost"


def test_a_throttled_device_and_one_of_another_kind_are_invalid() -> None:
    slowed = {"throttling": {"pi": "0x4"}}
    report, _, _ = report_of(bench(), "0" * 64, BASE, ALIGNED, replace(evidence(0.8), during=[slowed]), LIMITS)
    assert report.verdict == "invalid"
    assert "throttled" in report.timings
    other, _, _ = report_of(bench("jetson"), "0" * 64, BASE, ALIGNED, evidence(0.8), LIMITS)
    assert other.timings == "invalid: measured on x86_64, and target jetson is aarch64"


def test_a_question_without_answer_ends_it() -> None:
    some = evidence(0.8)
    with pytest.raises(MpaError, match="1 of 160 answers are missing"):
        report_of(bench(), "0" * 64, BASE, ALIGNED, replace(some, lines=some.lines[:1] + some.lines[2:]), LIMITS)


def test_the_report_is_written_last_and_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, folder = tmp_path / "images", tmp_path / "bench"
    images.mkdir()
    for name in IDS:
        Image.new("RGB", (900, 400), (200, 10, 10)).save(images / f"{name}.png")
    made = report_of(bench(), "0" * 64, BASE, ALIGNED, evidence(0.8), LIMITS)
    with monkeypatch.context() as patch:
        patch.setattr(documents, "write_jsonl", lambda *_: (_ for _ in ()).throw(OSError(28, "no space left")))
        with pytest.raises(OSError, match="no space"):
            write_documents(*made, images=images, folder=folder)
    assert not (folder / "bench.json").exists()
    write_documents(*made, images=images, folder=folder)
    data = read_bench(folder)
    assert data.report == made[0]
    assert data.notes == ()
    assert len(data.answers) == N
    assert len(data.timings) == 160
    assert max(Image.open(folder / THUMBNAILS / "000.jpg").size) == documents.THUMBNAIL_PIXELS
    assert json.loads((folder / "answers.jsonl").read_text().splitlines()[0])["id"] == "q0"


def test_earlier_documents_stay_until_all_new_ones_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, folder = tmp_path / "images", tmp_path / "bench"
    images.mkdir()
    for name in IDS:
        Image.new("RGB", (90, 40)).save(images / f"{name}.png")
    good = report_of(bench(), "0" * 64, BASE, ALIGNED, evidence(0.8), LIMITS)
    write_documents(*good, images=images, folder=folder)
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    lost = report_of(bench(), "1" * 64, BASE, ALIGNED, evidence(0.4), LIMITS)
    with monkeypatch.context() as patch:
        patch.setattr(documents, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "no space left")))
        with pytest.raises(OSError, match="no space"):
            write_documents(*lost, images=images, folder=folder)
    assert {name: (next(folder.glob(f"**/{name}"))).read_bytes() for name in before} == before
    assert read_bench(folder).report == good[0]
    write_documents(*lost, images=images, folder=folder)
    assert read_bench(folder).report == lost[0]
    assert not (folder / documents.NEW).exists()


# --- from the lines of a job to rows and figures ----------------------------------------------------------------------


def answer(question: str, text: str, variant: str = "artifact", repetition: int = 0, block: int = 0) -> Line:
    values = {"id": question, "repetition": repetition, "text": text, "tokens": 3}
    return Line("answer", variant, block, values)


def test_the_first_answer_on_the_device_is_scored_beside_those_of_the_host() -> None:
    lines = [answer("1", "red"), answer("2", "blue"), answer("1", "green", repetition=1), answer("2", "red", "base")]
    base = [prediction("1", "blue", 0.0, "red"), prediction("2", "red", 1.0, "red")]
    aligned = [prediction("1", "red", 1.0, "red"), prediction("2", "red", 1.0, "red")]
    made = answer_rows(get_task("minicharts"), base, aligned, lines, {})
    assert [(one.base, one.aligned, one.artifact, one.scores) for one in made] == [
        ("blue", "red", "red", (0.0, 1.0, 1.0)),
        ("red", "red", "blue", (1.0, 1.0, 0.0)),
    ]


def test_near_duplicates_count_as_one_image() -> None:
    host = [
        [row.model_copy(update={"image_id": f"group {i // 6}"}) for i, row in enumerate(rows)]
        for rows in (BASE, ALIGNED)
    ]
    images = {name: f"{name}.png" for name in IDS}
    report, rows, _ = report_of(bench(), "0" * 64, *host, replace(evidence(0.8), images=images), LIMITS, "teacher")
    alone, _, _ = report_of(bench(), "0" * 64, BASE, ALIGNED, evidence(0.8), LIMITS)
    assert (rows[7].image, rows[7].group, rows[7].cluster) == ("q7.png", "group 1", "group 1")
    wide, narrow = (one.accuracy.artifact.ci95 for one in (report, alone))
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])
    assert report.truth == "teacher"


def test_a_missing_answer_ends_with_the_runners_reason_and_what_to_do() -> None:
    steps = [Step("artifact", "1"), Step("artifact", "1", 1), Step("base", "1")]
    require_all(steps, [answer("1", "x"), answer("1", "x", repetition=1), answer("1", "x", "base")])
    lines = [answer("1", "x"), Line("failed", "artifact", 0, {"reason": "killed by signal 9"})]
    with pytest.raises(MpaError, match=r"2 of 3 answers are missing: killed by signal 9; rerun to resume"):
        require_all(steps, lines)


def test_memory_is_the_largest_of_a_variants_processes_or_says_why_not() -> None:
    lines = [
        Line("memory", "artifact", 0, {"peak_bytes": 5, "method": "VmHWM"}),
        Line("memory", "artifact", 2, {"peak_bytes": 9, "method": "VmHWM"}),
        Line("memory", "base", 1, {"peak_bytes": 99, "method": "VmHWM"}),
    ]
    assert (peak_memory(lines, "artifact").peak_bytes, peak_memory(lines, "artifact").method) == (9, "VmHWM")
    denied = [Line("memory", "artifact", 0, {"peak_bytes": None, "method": "/proc is closed"})]
    assert (peak_memory(denied, "artifact").peak_bytes, peak_memory(denied, "artifact").method) == (
        None,
        "/proc is closed",
    )
    assert peak_memory([], "artifact").peak_bytes is None


def test_busy_times_belong_to_one_variant_and_count_its_tokens() -> None:
    lines = [
        Line("loaded", "artifact", 0, {"uptime_s": 8.0, "load_s": 2.0}),
        answer("1", "x"),
        answer("2", "x"),
        Line("memory", "artifact", 0, {"uptime_s": 14.0}),
        Line("loaded", "base", 1, {"uptime_s": 15.0}),
        answer("1", "x", "base", 1, 1),
        Line("memory", "base", 1, {"uptime_s": 19.0}),
        Line("loaded", "artifact", 2, {"uptime_s": 20.0}),  # killed: it never said its end
    ]
    assert busy(lines, "artifact") == ([(10.0, 14.0)], 6)
