"""Export, bench and report say what is true after a review: here the student learned its teacher's errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpa_edge.bench.report.html import render_html
from mpa_edge.bench.report.read import read_bench
from mpa_edge.bench.report.table import render_table, verdict_line
from mpa_edge.bench.results.records import ANSWERS, BENCH, AnswerRow
from mpa_edge.cli.export import result_lines
from mpa_edge.config.library import load_recipe, load_scheme
from mpa_edge.evaluation.predict import with_silver
from mpa_edge.evaluation.review import open_decisions
from mpa_edge.exporters.publish.card import _accuracy
from mpa_edge.exporters.publish.manifest import finished
from mpa_edge.exporters.source import Source
from mpa_edge.exporters.verify import accuracy
from mpa_edge.questions.own import read_questions
from mpa_edge.types import Prediction
from tests.bench import made_up
from tests.exporters import hand_made
from tests.stages.review.conftest import silver_rows

N = 300
MODELS = ("base", "aligned", "artifact")


def teacher_is_right(i: int) -> bool:
    return i % 3 != 0


def says(model: str, i: int) -> str:
    """Base is right in nine of ten; aligned and its export say what the teacher says."""
    if model != "base":
        return f"w{i}"
    return "nothing" if i % 10 == 0 else f"w{i}" if teacher_is_right(i) else f"right{i}"


def review(run, n: int) -> None:
    samples = read_questions(run.folder / "silver" / "questions.jsonl").samples
    with open_decisions(run.folder, samples) as log:
        for i, sample in list(enumerate(samples))[:n]:
            right = teacher_is_right(i)
            log.add(sample, "right" if right else "wrong", "" if right else f"right{i}")


@pytest.fixture
def shipped(reviewable, write_silver):
    """The run with a larger silver set."""
    write_silver(reviewable, [row | {"group": None} for row in silver_rows(N)])
    return reviewable


@pytest.fixture
def bench(shipped) -> Path:
    """A benchmark of its export."""
    rows = [
        AnswerRow(
            id=str(row["id"]),
            image=str(row["image"]),
            question=str(row["question"]),
            kind=str(row["kind"]),
            answers=(f"w{i}",),
            base=says("base", i),
            aligned=says("aligned", i),
            artifact=says("artifact", i),
            scores=(float(says("base", i) == f"w{i}"), 1.0, 1.0),
        )
        for i, row in enumerate(silver_rows(N))
    ]
    timed = made_up.timings(1.0, np.random.default_rng(0))
    report = made_up.report_of(rows, timed, run="run", scheme="onnx-int8", target="cpu", emulated=False, peak=10**8)
    folder = shipped.folder / "bench" / "cpu" / "onnx-int8"
    folder.mkdir(parents=True)
    (folder / BENCH).write_text(report.model_copy(update={"truth": "teacher"}).model_dump_json())
    (folder / ANSWERS).write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return folder


def test_a_verdict_on_the_teacher_is_corrected_by_a_review(shipped, bench: Path) -> None:
    silver = read_bench(bench)
    assert (silver.report.truth, silver.report.verdict, silver.report.review) == ("teacher", "holds", None)
    assert verdict_line(silver).endswith("100.0 % agreement with the teacher")
    for text in (render_table(silver), render_html([silver])):
        assert "agreement with the teacher, not accuracy" in " ".join(text.split())
    review(shipped, 100)
    found = read_bench(bench)
    report = found.report
    assert (report.truth, report.verdict, report.accuracy_verdict) == ("reviewed", "lost", "lost")
    assert report.reasons[0] == "aligned is worse than base on the host already"
    assert report.accuracy.base.value == pytest.approx(0.9, abs=0.04)
    assert report.accuracy.artifact.value == pytest.approx(2 / 3, abs=0.02)
    low, high = report.accuracy.artifact.ci95
    assert low < 2 / 3 < high < 0.85
    assert report.review
    assert (report.review.n_reviewed, report.review.agreement[1:]) == (100, (1.0, 1.0))
    low, high = report.review.gain_ci95
    assert low < 2 / 3 - 0.9 < high < 0
    for text in (render_table(found), render_html([found])):
        plain = " ".join(text.split())
        assert "100 reviewed questions" in plain
        assert "The teacher was right in 66 of 100 reviewed questions" in plain
        assert "Worth dropping" in plain
    assert verdict_line(found).endswith("true accuracy")
    assert read_bench(bench).report == report  # nothing was written
    assert '"truth":"teacher"' in (bench / BENCH).read_text()


def test_a_bench_of_labelled_questions_has_no_review(shipped, bench: Path) -> None:
    review(shipped, 100)
    (bench / BENCH).write_text((bench / BENCH).read_text().replace('"truth":"teacher"', '"truth":"labels"'))
    assert read_bench(bench).report.truth == "labels"


def test_export_gives_true_figures_and_asks_no_model_again(shipped, tmp_path, monkeypatch) -> None:
    asked = []

    def answers(comparison, *names) -> list[Prediction]:
        model = names[-1] if names[-1] in MODELS else "artifact"
        asked.append(model)
        return [
            Prediction(
                sample_id=s.id,
                image_id=s.image,
                kind=s.kind,
                question=s.question,
                answers=s.answers,
                model=model,
                text=says(model, i),
                score=float(says(model, i) == f"w{i}"),
            )
            for i, s in enumerate(comparison.samples)
        ]

    monkeypatch.setattr(accuracy, "answers_of_run", answers)
    monkeypatch.setattr(accuracy, "answers_of", answers)
    monkeypatch.setattr(accuracy, "write_card", lambda *_: None)
    recipe = with_silver(load_recipe(str(shipped.folder / "recipe.yaml")), shipped.folder)
    source = Source("run", tmp_path, tmp_path / "exports", run=shipped.folder, recipe=recipe)
    folder = hand_made.export(source.exports / "onnx-int8", load_scheme("onnx-int8"))

    def measured():
        accuracy.measure(source, [folder], N)
        figures = finished(folder).accuracy
        return figures, "\n".join([*result_lines(finished(folder)), *_accuracy(finished(folder))])

    silver, text = measured()
    assert (silver.truth, silver.review, silver.artifact, silver.verdict) == ("teacher", None, 1.0, "holds")
    assert "agreement with the teacher: base 60.0%, aligned 100.0%" in text
    assert "These figures are agreement with the teacher, not accuracy" in text
    review(shipped, 100)
    true, text = measured()
    assert (true.truth, true.verdict, true.loss_upper) == ("reviewed", "lost", silver.loss_upper)
    assert true.artifact == pytest.approx(2 / 3, abs=0.02)
    assert true.base == pytest.approx(0.9, abs=0.04)
    assert "true accuracy: base 9" in text
    assert "prediction-powered, 100 reviewed questions" in text or "reviewed rows alone, 100 reviewed" in text
    assert "estimated from the agreement with the teacher and 100 reviewed questions" in text
    n_asked = len(asked)
    assert measured()[0] == true
    assert len(asked) == n_asked + 2  # base and aligned come from their logs; the export is as it was
