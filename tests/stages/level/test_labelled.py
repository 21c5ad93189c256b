"""Rows of one's own join the gap; what evaluation asks about is refused by content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mpa_edge.errors import MpaError
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.stages.evaluate import trained_images
from mpa_edge.stages.identify import run_identify
from mpa_edge.stages.level.stage import choose, level_inputs
from mpa_edge.stages.preflight import preflight
from mpa_edge.stages.run import with_absolute_paths

HEAD = "image,question,answers\n"
SMALL = {"annotate__samples_per_image": 1, "level__min_gap": 1}


@pytest.fixture
def mine(tmp_path: Path, images_folder: Path) -> Path:
    """Rows about an image elsewhere, and about one of the unlabelled images."""
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (8, 8), (99, 0, 0)).save(folder / "own.png")
    (folder / "mine.csv").write_text(f"{HEAD}own.png,What is it?,stop|halt|halt\n../images/2.png,How many?,4\n")
    return folder / "mine.csv"


def identified(shelf, make_run, **changed):
    shelf(teacher=lambda request: "Question: How many?\nAnswer: 3" if "Ask" in request.prompt else "3", student=str)
    run = make_run(**SMALL | changed)
    run_annotate(run)
    run_identify(run)
    return run


def test_they_are_trained_on_and_never_stop_the_training(shelf, make_run, mine, images_folder) -> None:
    plain = identified(shelf, make_run, level__holdout=0.5)
    run = make_run(**SMALL, level__holdout=0.5, level__labelled=str(mine))
    before, chosen = choose(plain), choose(run)
    own = chosen.train[-2:]
    assert [(row.question, row.answer) for row in own] == [("What is it?", "halt"), ("How many?", "4")]
    assert [Path(row.image).resolve() for row in own] == [mine.parent / "own.png", images_folder / "2.png"]
    assert "2.png" not in {row.image for row in chosen.holdout}
    assert {row.image for row in before.holdout} - {"2.png"} == {row.image for row in chosen.holdout}
    assert len(trained_images(run)) == 7
    inputs = level_inputs(run)
    assert set(inputs) - set(level_inputs(plain)) == {"labelled"}
    assert inputs["config"] == level_inputs(plain)["config"]
    mine.write_text(mine.read_text().replace("halt|halt", "halt"))
    assert level_inputs(run)["labelled"] != inputs["labelled"]


def test_images_that_evaluation_asks_about_are_refused_by_content(make_run, mine, images_folder, tmp_path) -> None:
    asked = tmp_path / "asked"
    asked.mkdir()
    shutil.copy(images_folder / "2.png", asked / "another-name.png")
    row = {"image": "another-name.png", "question": "How many?", "answers": ["3"]}
    (asked / "questions.jsonl").write_text(json.dumps(row))
    run = make_run(evaluate__questions=str(asked / "questions.jsonl"), level__labelled=str(mine))
    with pytest.raises(MpaError, match=r"mine\.csv: evaluation asks about \.\./images/2\.png: remove the rows of"):
        preflight(run, ["annotate", "level"])


@pytest.mark.parametrize(
    ("rows", "answer", "problem"),
    [
        (
            "a.png,What?,5\nb.png,What?,5\nown.png,What?,5\n",
            {},
            "no image a.png, b.png: give paths relative to the",
        ),
        (
            "own.png,What?,five\n",
            {"type": "number"},
            r"the answer to 'What\?' \(own.png\) is no number: correct it",
        ),
        (None, {}, "no file '.*': give level.labelled a .csv or .jsonl file of image, question, answers"),
    ],
)
def test_a_wrong_file_is_one_line_before_anything_runs(make_run, mine, rows, answer, problem) -> None:
    mine.unlink() if rows is None else mine.write_text(HEAD + rows)
    task = {"name": "mine", "objective": "Ask.", "kinds": [{"name": "a"}], "answer": answer}
    run = make_run(task=task, evaluate__holdout=0.0, level__labelled=str(mine))
    with pytest.raises(MpaError, match=problem):
        preflight(run, ["annotate", "level"])


def test_the_path_holds_in_any_folder(make_run, mine, monkeypatch) -> None:
    monkeypatch.chdir(mine.parent)
    assert with_absolute_paths(make_run(level__labelled="mine.csv").recipe).level.labelled == str(mine)
