"""With reviewed questions, a run's result is an estimate of the truth; no model is asked again."""

from __future__ import annotations

import pytest

from mpa_edge.cli._stage import accuracy_lines
from mpa_edge.evaluation.review import Decision, Decisions, about, reviewed_result
from mpa_edge.metrics import get_metric
from mpa_edge.runs.files import sha256_file, write_json
from mpa_edge.runs.manifest import finish
from mpa_edge.runs.parquet import write_rows
from mpa_edge.stages.evaluate import questions, result_of, summarise
from mpa_edge.stages.pipeline import report
from mpa_edge.stages.review.session import open_session
from mpa_edge.types import Prediction, Sample

SAYS = {
    "base": lambda i: f"w{i}" if i % 3 == 0 else "nothing",
    # learned from the teacher, its errors too
    "aligned": lambda i: f"w{i}" if i % 3 != 2 else f"right{i}",
}


def wrong(i: int) -> bool:
    """Whether the teacher is wrong about a question."""
    return i % 5 == 1


def answers(model: str, samples) -> list[Prediction]:
    score = get_metric("anls").score
    return [
        Prediction(
            sample_id=s.id,
            image_id=s.group or s.image,
            kind=s.kind,
            question=s.question,
            answers=s.answers,
            model=model,
            text=SAYS[model](i),
            score=score(SAYS[model](i), s.answers),
        )
        for i, s in enumerate(samples)
    ]


@pytest.fixture
def evaluated(reviewable):
    """The run, evaluated on its silver set."""
    folder = reviewable.folder / "evaluate"
    folder.mkdir()
    made = {name: answers(name, questions(reviewable).samples) for name in SAYS}
    for name, rows in made.items():
        write_rows(folder / f"predictions-{name}.parquet", rows, Prediction)
    write_json(folder / "evaluate.json", summarise(made, 200, 0) | {"metric": "anls", "truth": "teacher"})
    finish(folder, "evaluate", inputs={}, config={}, seed=0, counts={})
    return reviewable


def review(run, n: int) -> None:
    with open_session(run, n) as session:
        for name in list(session.chosen):
            if name not in session.decided:
                i = int(name[1:])
                session.decide(name, "wrong" if wrong(i) else "right", f"right{i}" if wrong(i) else "")


def test_reviewed_questions_tell_the_truth_from_the_same_answers(evaluated) -> None:
    files = {path: sha256_file(path) for path in (evaluated.folder / "evaluate").iterdir()}
    silver = report(evaluated)
    assert (silver.truth, silver.n_reviewed, silver.method) == ("teacher", None, None)
    review(evaluated, 25)
    found = report(evaluated)
    assert (found.truth, found.n_reviewed, found.method) == ("reviewed", 25, "prediction-powered")
    # what is true of all 30 questions
    base = sum(i % 3 == 0 and not wrong(i) for i in range(30)) / 30
    aligned = sum(wrong(i) == (i % 3 == 2) for i in range(30)) / 30
    assert silver.accuracy.aligned - aligned > 0.05
    assert found.accuracy.base == pytest.approx(base, abs=0.05)
    assert found.accuracy.aligned == pytest.approx(aligned, abs=0.05)
    assert found.gain == pytest.approx(aligned - base, abs=0.08)
    assert found.gain_ci95[0] < aligned - base < found.gain_ci95[1]
    assert found.teacher_accuracy == pytest.approx(0.8, abs=0.05)
    assert found.teacher_ci95[0] < 0.8 < found.teacher_ci95[1]
    assert found.p_mcnemar is None
    assert {path: sha256_file(path) for path in files} == files
    screen = "\n".join(accuracy_lines(result_of(evaluated)))
    assert "true accuracy, 30 held-out questions, 25 of them reviewed, anls" in screen
    assert "agreement with the teacher" in screen
    assert "the teacher was right in 19 of 25 reviewed questions: 76% (95 % interval " in screen
    assert "prediction-powered, 25 reviewed questions" in screen
    with open_session(evaluated, 30):  # other commands read the run meanwhile
        assert report(evaluated).n_reviewed == 25
    review(evaluated, 30)
    assert report(evaluated).n_reviewed == 30


def test_a_review_without_an_answerable_question_changes_nothing(evaluated) -> None:
    with open_session(evaluated, None) as session:
        session.decide("q0", "unanswerable", "")
    assert report(evaluated).truth == "teacher"
    # nor does one of other questions than those that were answered
    samples = questions(evaluated).samples
    made = {name: answers(name, samples)[:5] for name in SAYS}
    with open_session(evaluated, None) as session:
        session.decide("q20", "right", "")
        assert reviewed_result(made, session.log.decisions, "anls") is None


def test_kinds_that_the_teacher_does_not_know_are_worth_dropping() -> None:
    samples = [
        Sample(id=f"{i}", image=f"{i}.png", question="?", answers=("w",), kind=("count", "colour", "text")[i % 3])
        for i in range(60)
    ]
    decisions = Decisions(samples)
    for i, s in enumerate(samples):
        verdict = "wrong" if s.kind == "colour" and i % 2 else "right"
        decisions.take(Decision(id=s.id, verdict=verdict, answer="x", about=about(s), at="2026-01-01T00:00:00Z"))
    made = {
        name: [row.model_copy(update={"text": "w", "score": 1.0}) for row in answers(name, samples)] for name in SAYS
    }
    result = reviewed_result(made, decisions, "anls")
    assert result
    assert (
        result["quality"][1]
        == "right by kind, of all that were reviewed: colour 10 of 20, count 20 of 20, text 20 of 20"
    )
    assert result["quality"][2].startswith(
        "worth dropping, for the teacher is right less than 80% of the time: colour (at"
    )
    assert len(result["quality"]) == 3
