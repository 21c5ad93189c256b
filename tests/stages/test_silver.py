"""Held-out images without labels: the teacher writes the questions, and only what it says every time is asked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from mpa_edge.cli.evaluate import screen
from mpa_edge.errors import MpaError
from mpa_edge.evaluation.compare import open_comparison
from mpa_edge.evaluation.predict import recipe_spec, with_silver
from mpa_edge.evaluation.review import decisions_about
from mpa_edge.evaluation.score import run_eval
from mpa_edge.planning.counts import can_evaluate, n_held_out, with_held_out
from mpa_edge.questions.own import read_own, read_questions
from mpa_edge.runs.files import sha256_json
from mpa_edge.runs.manifest import finish
from mpa_edge.runs.parquet import each_dropped, read_rows
from mpa_edge.stages.annotate.stage import annotate_inputs, run_annotate
from mpa_edge.stages.evaluate import run_evaluate
from mpa_edge.stages.holdout import RECORD, choose_groups
from mpa_edge.stages.identify import run_identify
from mpa_edge.stages.level.stage import choose, level_inputs
from mpa_edge.stages.pipeline import report
from mpa_edge.stages.preflight import estimate, image_count, preflight, summary
from mpa_edge.stages.review.session import open_session
from mpa_edge.stages.run import Run, remember
from mpa_edge.stages.silver import UNSURE, run_silver, silver_inputs
from mpa_edge.tasks import get_task
from mpa_edge.types import Prediction
from tests.stages.conftest import FakeVLM, number_of

PROMPTS = get_task("okvqa").annotation_prompts
SILVER = {"task": "okvqa", "annotate__samples_per_image": 2, "images__group": "none", "level__min_gap": 1}


def teacher(request) -> str:
    """Writes two questions about an image; of the second it is not sure where the image's number is even."""
    n = number_of(request)
    if request.prompt in PROMPTS:
        which = PROMPTS.index(request.prompt)
        return f"Question: What is {which} of {n}?\nAnswer: w{n}"
    unsure = "What is 1" in request.prompt and n % 2 == 0 and request.temperature > 0
    return f"x{request.seed}" if unsure else f"w{n}"


@pytest.fixture
def silver_run(shelf, make_run) -> Run:
    """Three of six images are held out, annotated and made into questions; the run is marked as merged."""
    shelf(teacher=teacher, student=lambda request: "wrong", base=lambda request: "w1", aligned=teacher)
    run = make_run(**SILVER)
    run.folder.mkdir()
    remember(run)
    for stage in (run_annotate, run_silver, run_identify):
        stage(run)
    return run


def test_what_the_teacher_does_not_say_every_time_is_left_out(silver_run, capsys) -> None:
    found = read_questions(silver_run.folder / "silver" / "questions.jsonl")
    held_out = {entry.name for entry in silver_run.entries if entry.drop is not None}
    assert len(held_out) == 3
    sure = {(name, which) for name in held_out for which in (0, 1) if not (which and int(name[0]) % 2 == 0)}
    assert {(s.image, int(s.question[8])) for s in found.samples} == sure
    assert all(s.answers == (f"w{s.image[0]}",) * 10 and s.group for s in found.samples)
    assert all(s.kind == get_task("okvqa").prompt_kinds[int(s.question[8])] for s in found.samples)
    dropped = [row.reason for row in each_dropped(silver_run.folder / "silver")]
    assert dropped == [UNSURE] * (6 - len(sure))
    assert (found.truth, found.folder) == ("teacher", silver_run.images_folder.absolute())
    assert read_own(silver_run.folder / "silver" / "questions.jsonl").samples == found.samples
    run_silver(silver_run)
    assert "silver: already done, nothing changed" in capsys.readouterr().err


def test_nothing_is_learned_from_held_out_images(silver_run) -> None:
    held_out = {entry.name for entry in silver_run.entries if entry.drop is not None}
    annotated = {row.image for row in each_dropped(silver_run.stage_folder("annotate")) if row.id == row.image}
    assert annotated == held_out
    chosen = choose(silver_run)
    assert {row.image for row in (*chosen.train, *chosen.holdout)} == {f"{i}.png" for i in range(6)} - held_out


def test_the_choice_depends_on_content_alone(silver_run, make_run, tmp_path) -> None:
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for i in range(6):
        shutil.copy(silver_run.images_folder / f"{i}.png", renamed / f"{9 - i}-other.png")
    assert replace(silver_run, folder=tmp_path / "new", images=str(renamed)).held_out == silver_run.held_out
    assert make_run("other", **SILVER, seed=4).held_out != silver_run.held_out
    more = make_run("more", **SILVER, evaluate__holdout=0.5, evaluate__n=1)
    assert len(more.held_out) == 3
    assert len(make_run("fewer", **SILVER, evaluate__holdout=0.01, evaluate__n=1).held_out) == 1


def test_images_that_come_later_change_nothing_until_annotate_sees_them(silver_run, images_folder) -> None:
    before, inputs = silver_run.held_out, level_inputs(silver_run)
    for i in range(6, 12):
        shutil.copy(images_folder / "0.png", images_folder / f"{i}.png")
        (images_folder / f"{i}.png").write_bytes((images_folder / "0.png").read_bytes() + bytes([i]))
    later = Run(silver_run.folder, silver_run.recipe, images=str(images_folder))
    assert (later.held_out, level_inputs(later)) == (before, inputs)
    assert silver_inputs(later) == silver_inputs(silver_run)
    more = silver_run.recipe.evaluate.model_copy(update={"votes": 6})
    votes = replace(silver_run, recipe=silver_run.recipe.model_copy(update={"evaluate": more}))
    assert (votes.held_out, silver_inputs(votes) == silver_inputs(silver_run)) == (before, False)
    assert annotate_inputs(later) != annotate_inputs(silver_run)
    run_annotate(later)
    assert len(Run(silver_run.folder, silver_run.recipe, images=str(images_folder)).held_out) == 6


def test_evaluate_measures_agreement_with_the_teacher(silver_run, capsys) -> None:
    run = silver_run
    for stage in ("level", "merge"):
        run.stage_folder(stage).mkdir()
        finish(run.stage_folder(stage), stage, inputs={}, config={}, seed=0, counts={})
    run_evaluate(run)
    result = json.loads((run.stage_folder("evaluate") / "evaluate.json").read_text())
    assert result["truth"] == "teacher"
    assert set(result["accuracy"]) == {"base", "aligned"}
    assert result["accuracy"]["aligned"] == 1.0
    found = report(run)
    assert (found.truth, found.accuracy.teacher, found.accuracy.aligned) == ("teacher", None, 1.0)
    rows = read_rows(run.stage_folder("evaluate") / "predictions-base.parquet", Prediction)
    assert {row.image_id for row in rows} == set(run.held_out_groups.values())
    # any model of the run is asked the same
    with_questions = with_silver(run.recipe, run.folder)
    assert len(open_comparison(with_questions, 200, run.folder / "compared").samples) == result["n"]
    assert "the teacher has written 5 held-out questions, fewer than --accuracy 200: all" in capsys.readouterr().err
    spec = recipe_spec(with_silver(run.recipe, run.folder), run.folder / "drawn")
    scored = run_eval(spec, "m", lambda: FakeVLM("m", teacher))
    assert (scored["truth"], scored["accuracy"], scored["n"]) == ("teacher", 1.0, result["n"])
    shown = "\n".join(screen(scored))
    assert "agreement with the teacher" in shown
    assert "cannot show what the teacher gets wrong itself" in shown
    # a review changes the scores of the same answers
    asked = [sample.id for sample in spec.questions.samples]
    assert asked == sorted(asked, key=lambda key: sha256_json([run.recipe.seed, key])) != sorted(asked)
    with open_session(run, None) as session:
        assert list(session.chosen) == asked  # fewer questions are those that are reviewed first
        for name in session.chosen:
            session.decide(name, "wrong", "w1")
    capsys.readouterr()
    run_evaluate(run)
    assert "evaluate: already done, nothing changed" in capsys.readouterr().err
    found = report(run)
    about_one = sum(sample.image == "1.png" for sample in spec.questions.samples) / result["n"]
    assert (found.truth, found.teacher_accuracy, found.accuracy.base) == ("reviewed", 0.0, 1.0)
    assert found.accuracy.aligned == about_one < 1
    assert found.n_reviewed == result["n"]
    true = run_eval(spec, "m", lambda: FakeVLM("m", teacher), decisions=decisions_about(run.folder, spec.questions))
    assert (true["truth"], true["accuracy"], true["agreement"]) == ("reviewed", about_one, 1.0)
    assert "true accuracy" in "\n".join(screen(true))


def test_the_plan_counts_the_silver_set(make_run) -> None:
    run = make_run(**SILVER)
    assert can_evaluate(run.recipe)
    assert not can_evaluate(make_run(**SILVER, evaluate__holdout=0.0).recipe)
    assert image_count(run) == 3
    assert summary(run)["stages"]["evaluate"] == (
        "up to 6 questions that the teacher writes about 3 of 3 held-out images and answers 5 times, "
        "to base and aligned"
    )
    preflight(run, ("annotate", "evaluate"))
    assert not run.folder.exists()
    few, many = (estimate(make_run(**SILVER, evaluate__votes=votes)) for votes in (1, 32))
    assert few.machines[0].stages["evaluate"].seconds < many.machines[0].stages["evaluate"].seconds
    assert (few.counts.images, few.counts.silver_images, few.counts.silver_asked) == (3, 3, 6.0)


def test_a_limit_counts_the_images_that_are_learned_from(make_run) -> None:
    run = make_run(limit=2, **SILVER)
    assert [entry.drop for entry in run.entries].count(None) == image_count(run) == 2
    assert len(run.held_out) == 2
    recipe = make_run(task="okvqa", annotate__samples_per_image=4).recipe
    for limit in (8, 100, 1000, 10_000):
        found = with_held_out(limit, recipe)
        assert limit <= found - n_held_out(found, recipe) <= limit + 2


def test_shares_of_images(make_run) -> None:
    recipe = make_run(task="okvqa", annotate__samples_per_image=4).recipe
    assert [n_held_out(n, recipe) for n in (1, 50, 300, 3000)] == [0, 25, 100, 300]


def test_a_teacher_that_confirms_nothing_is_one_line(shelf, make_run) -> None:
    def unsure(request) -> str:
        return teacher(request) if request.prompt in PROMPTS or not request.temperature else f"x{request.seed}"

    shelf(teacher=unsure)
    run = make_run(**SILVER)
    with pytest.raises(
        MpaError,
        match=r"silver: of its answers about 3 held-out images, the teacher confirmed none \(.*every time: 6\)",
    ):
        run_silver(run)
    assert not run.finished("silver")
    shelf(teacher=unsure)
    run_silver(make_run(**SILVER, evaluate__votes=1))
    assert run.finished("silver")


def test_a_teacher_at_temperature_zero_is_still_asked_in_different_ways(shelf, make_run) -> None:
    models = shelf(teacher=teacher)
    run_silver(make_run(**SILVER, annotate__temperature=0.0))
    votes = [request for request in models.asked("teacher") if request.prompt not in PROMPTS]
    assert {request.temperature for request in votes} == {0.0, 1.0}
    assert len({(request.prompt, number_of(request), request.seed) for request in votes}) == len(votes)


def test_nothing_to_hold_out_is_one_line(make_run, images_folder) -> None:
    for i in range(1, 6):
        (images_folder / f"{i}.png").unlink()
    with pytest.raises(MpaError, match=r"none of 1 images can be held out for evaluation: add images, name questions"):
        run_annotate(make_run(**SILVER))
    run = make_run(**SILVER, evaluate__holdout=0.0)
    assert [entry.drop for entry in run.entries] == [None]
    assert not (run.folder / RECORD).exists()


def test_a_group_is_never_split(make_run, images_folder) -> None:
    for i in range(6):
        folder = images_folder / ("a" if i < 4 else f"b{i}")
        folder.mkdir(exist_ok=True)
        (images_folder / f"{i}.png").rename(folder / f"{i}.png")
    run = make_run(**SILVER | {"images__group": "folder"})
    assert {entry.name for entry in run.entries if entry.drop} == {"b4/4.png", "b5/5.png"}
    assert len(set(run.held_out_groups.values())) == 2
    (images_folder / "b4" / "4.png").unlink()
    (images_folder / "b5" / "5.png").unlink()
    with pytest.raises(MpaError, match=r"none of 4 images .*, 4 of them in one group that is never split"):
        make_run("other", **SILVER | {"images__group": "folder"}).held_out  # noqa: B018


def test_large_groups_are_taken_whole_or_not_at_all() -> None:
    import numpy as np

    ids = [f"{i:016x}" for i in range(20)]
    two = choose_groups(np.repeat([0, 1], 10), ids, 2, seed=0)
    assert len(two) == 10
    mixed = choose_groups(np.array([0] * 12 + list(range(1, 9))), ids, 4, seed=0)
    assert len(mixed) == 4
    assert min(mixed) >= 12
