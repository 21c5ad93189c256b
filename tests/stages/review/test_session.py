"""Which questions are reviewed, and that no decision is lost or counted twice."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.evaluation.review import (
    DECISIONS,
    REVIEW,
    in_random_order,
    read_decisions,
    teacher_by_kind,
    teacher_quality,
)
from mpa_edge.questions.own import read_own
from mpa_edge.stages.evaluate import questions
from mpa_edge.stages.review.session import export_reviewed, open_session, run_to_review, summary
from mpa_edge.stages.run import remember
from tests.stages.conftest import recipe_with
from tests.stages.review.conftest import N, silver_rows


def test_a_review_goes_on_after_a_kill_on_another_day(reviewable) -> None:
    path = reviewable.folder / REVIEW / DECISIONS
    with open_session(reviewable, 5) as session:
        first = session.state()["question"]["id"]
        state = session.decide(first, "right", "")
        assert json.loads(path.read_bytes())["id"] == first  # before anything is closed
        second = state["question"]["id"]
        session.decide(second, "wrong", "7")
    with path.open("ab") as file:
        file.write(b'{"id": "q1", "verd')  # a kill in the middle of a line
    assert list(read_decisions(reviewable.folder, questions(reviewable).samples).by_id) == [first, second]
    with open_session(reviewable, 7) as session:
        state = session.state()
        assert (state["done"], state["n"]) == (2, 7)
        assert state["question"]["id"] not in (first, second)
        session.decide(state["question"]["id"], "unanswerable", "")
    assert [json.loads(line)["verdict"] for line in path.read_text().splitlines()] == ["right", "wrong", "unanswerable"]


def test_two_tabs_never_decide_twice(reviewable) -> None:
    with open_session(reviewable, None) as session:
        assert session.state()["n"] == N
        shown = session.state()["question"]["id"]
        session.decide(shown, "right", "")
        state = session.decide(shown, "wrong", "7")
        assert "another tab" in state["note"]
        assert (state["done"], session.log.decisions.by_id[shown].verdict) == (1, "right")
        assert "Another tab" in session.undo("q29" if shown != "q29" else "q28")["note"]
        assert session.undo(shown)["question"]["id"] == shown
        assert session.undo(shown)["done"] == 0
        with pytest.raises(MpaError, match="is being reviewed already: use that page, or end that process"):
            open_session(reviewable, None).__enter__()
    assert read_decisions(reviewable.folder, questions(reviewable).samples).by_id == {}


def test_the_sample_is_random_by_seed_and_more_of_it_begins_the_same(reviewable) -> None:
    samples = questions(reviewable).samples
    order = [sample.id for sample in in_random_order(samples, 0)]
    assert sorted(order) == sorted(sample.id for sample in samples) != order
    assert order == [sample.id for sample in in_random_order(samples[::-1], 0)]
    assert order != [sample.id for sample in in_random_order(samples, 1)]
    fewer = [sample.id for sample in in_random_order(samples[:20], 0)]
    assert fewer == [name for name in order if name in set(fewer)]


def test_time_left_is_the_median_of_the_last_decisions_without_breaks(reviewable, monkeypatch) -> None:
    times = iter([0, 4, 8, 4000, 4012])
    monkeypatch.setattr("mpa_edge.evaluation.review.datetime", Clock(times))
    with open_session(reviewable, 10) as session:
        assert session.state()["left_s"] == 60
        for _ in range(5):
            state = session.decide(session.state()["question"]["id"], "right", "")
    assert state["left_s"] == 5 * 4


class Clock:
    """Stands in for `datetime`."""

    def __init__(self, seconds) -> None:
        self.seconds = seconds

    def now(self, _zone) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(self.seconds))


def test_a_decision_counts_only_for_what_was_judged(reviewable, write_silver) -> None:
    with open_session(reviewable, None) as session:
        for name in ("q0", "q1", "q2"):
            session.decide(name, "right", "")
    rows = silver_rows()
    rows[1]["answers"] = ["another"]
    write_silver(reviewable, [row for row in rows if row["id"] != "q2"])
    found = read_decisions(reviewable.folder, questions(reviewable).samples)
    assert (list(found.by_id), found.outdated) == (["q0"], 2)
    assert summary(found).endswith("0 cannot be answered, 2 earlier decisions no longer count")


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "{}",
        "",
        '{"id": "q1", "verdict": "maybe", "about": "x", "at": "2026-01-01T00:00:00Z"}',
        '{"id": "q1", "verdict": "wrong", "answer": " | ", "about": "x", "at": "2026-01-01T00:00:00Z"}',
        '{"id": 1, "verdict": "right", "about": "x", "at": "2026-01-01T00:00:00Z"}',
        '{"id": "q1", "verdict": "right", "about": "x", "at": "2026-01-01T00:00:00Z", "more": 1}',
        '{"id": "q1", "verdict": "right", "about": "x", "at": "now"}',
        "\udcff\udcfe",
    ],
)
def test_a_damaged_file_is_one_line(reviewable, line: str) -> None:
    with open_session(reviewable, None) as session:
        session.decide("q0", "right", "")
    path = reviewable.folder / REVIEW / DECISIONS
    path.write_bytes(path.read_bytes() + os.fsencode(line) + b"\n")
    with pytest.raises(MpaError, match=r"decisions\.jsonl:2: no decision of a review: delete this line, and rerun"):
        open_session(reviewable, None).__enter__()
    with pytest.raises(MpaError, match=r"decisions\.jsonl:2"):
        read_decisions(reviewable.folder, questions(reviewable).samples)


def test_a_link_in_the_place_of_the_file_is_not_followed(reviewable, tmp_path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("mine")
    (reviewable.folder / REVIEW).mkdir()
    (reviewable.folder / REVIEW / DECISIONS).symlink_to(other)
    for use in (lambda: open_session(reviewable, None).__enter__(), lambda: read_decisions(reviewable.folder, ())):
        with pytest.raises(MpaError):
            use()
    assert other.read_text() == "mine"


def test_needs_a_silver_set_of_that_size(reviewable, make_run, tmp_path) -> None:
    with pytest.raises(MpaError, match=rf"only {N} questions: use --n {N}"):
        open_session(reviewable, N + 1).__enter__()
    labelled, early = make_run("labelled"), make_run("early", task="stvqa")
    for run, why in (
        (labelled, "has labelled questions, so there is nothing to review"),
        (early, r"has no silver set to review: run mpa-edge evaluate .*early first"),
    ):
        run.folder.mkdir()
        remember(run)
        with pytest.raises(MpaError, match=why):
            open_session(run, None).__enter__()
    for folder in (str(tmp_path / "nowhere"), "minicharts"):
        with pytest.raises(MpaError, match="is no run folder: name one that mpa-edge align made"):
            run_to_review(folder)


def test_what_a_task_does_not_take_is_no_right_answer(reviewable) -> None:
    with open_session(reviewable, None) as session:
        assert session.fault("7 | 8") == ""
        assert "type the right answer" in session.fault(" | ")
        session.metric = "choice:red|green"
        assert session.fault("red") == ""
        assert session.fault("blue") == "'blue' is none of the choices: type another answer"


def test_how_often_the_teacher_was_right(reviewable) -> None:
    with open_session(reviewable, None) as session:
        for i in range(24):
            # the teacher counts well and knows no colour
            verdict = "right" if i % 2 == 0 else "unanswerable" if i == 1 else "wrong"
            session.decide(f"q{i}", verdict, "7")
        decisions = session.log.decisions
    found, kinds = teacher_quality(decisions), teacher_by_kind(decisions)
    assert (found.n, found.right, found.unanswerable) == (24, 12, 1)
    assert found.accuracy == 12 / 23
    assert found.ci95[0] < 12 / 23 < found.ci95[1]
    assert [(kind, one.usable, one.worth_dropping) for kind, one in kinds.items()] == [
        ("colour", 0.0, True),
        ("count", 1.0, False),
    ]
    assert summary(decisions).startswith("24 questions reviewed, teacher right 52% (95 % interval ")


def test_reviewed_questions_are_labelled_ones(reviewable, tmp_path) -> None:
    with pytest.raises(MpaError, match="no reviewed question of .* can be answered: run mpa-edge review"):
        export_reviewed(reviewable, tmp_path / "x.csv")
    with open_session(reviewable, None) as session:
        session.decide("q3", "wrong", "red | dark red")
        session.decide("q1", "right", "")
        session.decide("q2", "unanswerable", "")
    path = tmp_path / "somewhere" / "held-out.csv"
    path.parent.mkdir()
    assert export_reviewed(reviewable, path) == 2
    found = read_own(path)
    asked = {row["id"]: row["question"] for row in silver_rows()}
    assert [(s.id, s.question, s.answers, s.kind, s.group) for s in found.samples] == [
        ("q1", asked["q1"], ("w1",), "colour", "g0"),
        ("q3", asked["q3"], ("red", "dark red"), "colour", "g0"),
    ]
    assert (found.truth, found.dropped) == ("labels", {})
    with pytest.raises(MpaError, match=r"let its name end in \.csv"):
        export_reviewed(reviewable, tmp_path / "x.jsonl")
    with pytest.raises(MpaError, match="choose another --export"):
        export_reviewed(reviewable, tmp_path / "no" / "x.csv")


def test_the_answers_of_ten_people_are_asked_of_one(reviewable, write_silver, tmp_path) -> None:
    rows = [row | {"answers": [f"w{i}"] * 10} for i, row in enumerate(silver_rows())]
    run = type(reviewable)(reviewable.folder, recipe_with(task="okvqa", evaluate__n=N), images=reviewable.images)
    write_silver(run, rows)
    with open_session(run, None) as session:
        session.decide("q1", "wrong", "red")
    export_reviewed(run, tmp_path / "x.csv")
    assert read_own(tmp_path / "x.csv").samples[0].answers == ("red",) * 10
