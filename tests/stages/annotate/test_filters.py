"""What annotate leaves out on demand, over teachers that say what the test wants."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image
from pydantic import ValidationError

from mpa_edge.config.recipe import AnnotateConfig
from mpa_edge.errors import MpaError
from mpa_edge.runs.parquet import count_reasons, read_dropped, read_parts
from mpa_edge.stages.annotate.filters import GREY, alikeness, repeats, sure
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.tasks import get_task
from mpa_edge.types import PseudoAnnotation

PROMPTS = get_task("minicharts").annotation_prompts


def rows_of(run) -> list[PseudoAnnotation]:
    return read_parts(run.stage_folder("annotate"), PseudoAnnotation)


def reasons(run) -> dict[str, int]:
    return count_reasons(read_dropped(run.stage_folder("annotate")))


def sees(request) -> str:
    """Its first question can be answered by anybody, its others only by looking."""
    if request.prompt in PROMPTS:
        number = PROMPTS.index(request.prompt)
        return f"Question: What is {number}?\nAnswer: {7 if number == 0 else number}"
    known = request.prompt == "What is 0?"
    grey = request.image.getpixel((0, 0)) == GREY
    return "7." if known else "nothing" if grey else request.prompt.removeprefix("What is ").rstrip("?")


def test_what_is_answered_without_the_picture_is_dropped(shelf, make_run) -> None:
    models, run = shelf(teacher=sees), make_run(annotate__blind_filter=True, annotate__votes=2)
    run_annotate(run)
    assert reasons(run) == {"answered without the picture": 6}
    assert {row.question for row in rows_of(run)} == {f"What is {number}?" for number in range(1, 5)}
    blind = [request for request in models.asked("teacher") if request.image.getpixel((0, 0)) == GREY]
    assert len(blind) == 30
    assert {request.image.size for request in blind} == {(8, 8)}
    assert {(request.temperature, request.max_new_tokens) for request in blind} == {(0.0, 16)}


def test_without_the_filter_nobody_sees_grey(shelf, make_run) -> None:
    models, run = shelf(teacher=sees), make_run()
    run_annotate(run)
    assert len(rows_of(run)) == 30
    assert GREY not in {request.image.getpixel((0, 0)) for request in models.asked("teacher")}


def test_pictures_keep_their_own_size_when_they_turn_grey(shelf, make_run, pictures) -> None:
    Image.new("RGB", (16, 4), (5, 0, 0)).save(pictures / "5.png")
    models, run = shelf(teacher=sees), make_run(annotate__blind_filter=True)
    run_annotate(run)
    blind = [request for request in models.asked("teacher") if request.image.getpixel((0, 0)) == GREY]
    assert [request.image.size for request in blind].count((16, 4)) == 5


@pytest.mark.parametrize(("alike", "kept"), [(1.0, 5), (0.8, 4)])
def test_nearly_the_same_question_with_the_same_answer_is_one(shelf, make_run, alike, kept) -> None:
    said = (
        ("Which bar is the highest?", "B"),
        ("Which bar is highest?", "b."),  # the same
        ("Which bar is the lowest?", "C"),
        ("What is the value of A?", "3"),
        ("What is the value of B?", "5"),  # one word is another, and so is the answer
    )

    def teacher(request) -> str:
        if request.prompt in PROMPTS:
            question, answer = said[PROMPTS.index(request.prompt)]
            return f"Question: {question}\nAnswer: {answer}"
        return "7"

    shelf(teacher=teacher)
    run = make_run(annotate__near_duplicates=alike)
    run_annotate(run)
    assert len(rows_of(run)) == 6 * kept
    assert reasons(run) == ({} if kept == 5 else {"duplicate question": 6})
    assert ("Which bar is highest?" in {row.question for row in rows_of(run)}) == (kept == 5)


def test_the_same_words_are_one_question_whatever_the_answer() -> None:
    assert repeats("HOW many?", "4", [("How many?", "3")], 1.0)
    assert not repeats("How many?", "3", [("How much?", "3")], 1.0)
    assert alikeness("How many bars?", "how many bars") == 1.0


def test_an_unsure_teacher_is_not_believed(shelf, make_run) -> None:
    models = shelf(teacher=sees)
    run = make_run(annotate__min_confidence=0.5, annotate__votes=3)
    answer = type(models("x", name="teacher")).answer

    def hesitates(self, requests):
        logprobs = {"What is 1?": -2.0}
        return [
            replace(reply, logprob=logprobs.get(request.prompt, -0.1) if request.confidence else None)
            for request, reply in zip(requests, answer(self, requests), strict=True)
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(models.loaded[0]), "answer", hesitates)
        run_annotate(run)
    assert reasons(run) == {"the teacher was not sure": 6}
    assert "What is 1?" not in {row.question for row in rows_of(run)}
    assert {row.logprob for row in rows_of(run)} == {-0.1}
    # only the greedy vote is measured: a sampled one is unsure on purpose
    assert {request.temperature for request in models.asked("teacher") if request.confidence} == {0.0}
    assert sum(request.confidence for request in models.asked("teacher")) == 30


def test_a_teacher_that_does_not_say_how_sure_it_is(shelf, make_run) -> None:
    shelf(teacher=sees)
    with pytest.raises(MpaError, match=r"gives no token probabilities: leave annotate\.min_confidence out"):
        run_annotate(make_run(annotate__min_confidence=0.5))


def test_confidence_is_a_probability() -> None:
    row = PseudoAnnotation(id="1", image_id="1", image="1", question="?", answer="7", votes=("7",), teacher="teacher")
    assert sure(row, -0.693, 0.5) == row.model_copy(update={"logprob": -0.693})
    assert sure(row, -0.694, 0.5).reason == "the teacher was not sure"
    with pytest.raises(ValidationError, match=r"min_confidence needs an answer to measure: use annotate\.votes=1"):
        AnnotateConfig(min_confidence=0.5, votes=0)


def test_runs_from_before_these_keys_stay_finished(shelf, make_run, capsys) -> None:
    """The hash of the settings is that of a recipe without them."""
    shelf(teacher=sees)
    run = make_run()
    old = set(AnnotateConfig.model_fields) - AnnotateConfig.ADDED - {"batch_size"}
    assert set(run.recipe.annotate.settings({"batch_size"})) == old
    assert AnnotateConfig(blind_filter=True).settings()["blind_filter"] is True
    run_annotate(run)
    run_annotate(make_run(annotate__blind_filter=False))
    assert capsys.readouterr().err.endswith("annotate: done before, nothing changed\n")
    run_annotate(make_run(annotate__blind_filter=True))
    assert "made again, because of other config" in capsys.readouterr().err
