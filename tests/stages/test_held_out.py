"""Images that evaluation asks about: nothing is learned from them, whenever that becomes known."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mpa_edge.errors import MpaError
from mpa_edge.questions.own import read_questions
from mpa_edge.runs.files import write_json
from mpa_edge.runs.manifest import finish, read_manifest
from mpa_edge.runs.parquet import each_dropped
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.stages.evaluate import unseen
from mpa_edge.stages.identify import run_identify
from mpa_edge.stages.level.stage import ASKED_ABOUT, choose, level_inputs
from mpa_edge.stages.pipeline import check_earlier
from mpa_edge.stages.preflight import image_count, preflight, summary
from mpa_edge.tasks import get_task
from tests.stages.conftest import number_of

PROMPTS = get_task("minicharts").annotation_prompts
SMALL = {"level__min_gap": 1, "level__holdout": 0.0}


def teacher(request) -> str:
    return "Question: How many?\nAnswer: 3" if request.prompt in PROMPTS else "3"


@pytest.fixture
def asked(tmp_path: Path, images_folder: Path) -> Path:
    """Questions about a copy of image 1 with another name, and twice about image 4 itself."""
    folder = tmp_path / "held-out"
    folder.mkdir()
    shutil.copy(images_folder / "1.png", folder / "copy.png")
    rows = [{"image": name, "question": "How many?", "answers": ["3"]} for name in ("copy.png", "../images/4.png") * 2]
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_teacher_is_not_asked_about_them(shelf, make_run, asked, capsys) -> None:
    models = shelf(teacher=teacher, student=lambda request: "4")
    run = make_run(evaluate__questions=str(asked), evaluate__n=1000)
    assert image_count(run) == 4
    assert summary(run)["stages"]["evaluate"] == "4 questions to teacher, base and aligned"
    run_annotate(run)
    assert {number_of(request) for request in models.asked("teacher")} == {0, 2, 3, 5}
    dropped = [(row.image, row.reason) for row in each_dropped(run.stage_folder("annotate")) if row.id == row.image]
    assert dropped == [("1.png", "held out for evaluation"), ("4.png", "held out for evaluation")]
    assert "held out for evaluation: 2" in capsys.readouterr().err


def test_what_was_annotated_before_stays_and_is_not_learned(shelf, make_run, asked, capsys) -> None:
    shelf(teacher=teacher, student=lambda request: "4")
    before = make_run(**SMALL)
    for run_stage in (run_annotate, run_identify):
        run_stage(before)
    level, inputs = before.stage_folder("level"), level_inputs(before)
    level.mkdir()
    finish(level, "level", inputs=inputs, config={}, seed=0, counts={})
    after = make_run(evaluate__questions=str(asked), **SMALL)
    run_annotate(after)
    assert "annotate: already done, nothing changed" in capsys.readouterr().err
    assert {row.image for row in choose(after).train} == {"0.png", "2.png", "3.png", "5.png"}
    assert "level: left out 2 samples about images that evaluation asks about" in capsys.readouterr().err
    assert set(level_inputs(after)) - set(inputs) == {ASKED_ABOUT}
    manifest = read_manifest(level)
    assert manifest is not None
    merged = after.stage_folder("merge")
    merged.mkdir()
    write_json(merged / "manifest.json", manifest.model_copy(update={"stage": "merge"}))
    with pytest.raises(
        MpaError, match=r"level in .* learned from images that evaluation asks about: run mpa-edge level"
    ):
        check_earlier(after, "merge")
    elsewhere = asked.with_name("other.jsonl")
    Image.new("RGB", (9, 9)).save(asked.with_name("other.png"))
    elsewhere.write_text(json.dumps({"image": "other.png", "question": "?", "answers": ["1"]}))
    assert level_inputs(make_run(evaluate__questions=str(elsewhere), **SMALL)) == inputs


def test_questions_that_come_later_leave_out_what_was_learned(shelf, make_run, asked) -> None:
    shelf(teacher=teacher, student=lambda request: "4")
    run = make_run(**SMALL)
    for run_stage in (run_annotate, run_identify):
        run_stage(run)
    run.stage_folder("level").mkdir()
    finish(run.stage_folder("level"), "level", inputs={}, config={}, seed=0, counts={})
    Image.new("RGB", (9, 9)).save(asked.with_name("new.png"))
    with pytest.raises(MpaError, match=r"questions\.jsonl: .* was trained on every image: ask about others$"):
        unseen(read_questions(asked), run)
    asked.write_text(asked.read_text() + "\n" + json.dumps({"image": "new.png", "question": "?", "answers": ["1"]}))
    found = unseen(read_questions(asked), run)
    assert ([sample.image for sample in found.samples], found.numbers) == (["new.png"], (4,))
    assert found.dropped == {"image that the student was trained on": 4}


def test_nothing_but_held_out_images_is_one_line(make_run, images_folder, asked) -> None:
    rows = [{"image": f"../images/{i}.png", "question": "?", "answers": ["1"]} for i in range(6)]
    asked.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(MpaError, match=r"evaluation asks about every usable image in '.*images': name other images$"):
        preflight(make_run(evaluate__questions=str(asked)), ("annotate",))


def test_a_limit_counts_what_can_be_used(make_run, images_folder) -> None:
    (images_folder / "0-a.heic").write_bytes(b"x")
    (images_folder / "0-b.png").write_bytes(b"")
    (images_folder / "0-c.png").write_text("no image")
    shutil.copy(images_folder / "0.png", images_folder / "0-d.png")
    run = make_run(limit=3)
    usable = [entry.name for entry in run.entries if entry.drop is None]
    assert usable == ["0-c.png", "0-d.png", "1.png", "2.png"]
    assert len(replace(run, limit=100).entries) == 10
