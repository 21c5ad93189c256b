"""Folders whose names are not UTF-8, anywhere on the way to the images and to the run."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.evaluation.predict import question_set
from mpa_edge.runs.parquet import count_rows, shards_done
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.stages.identify import run_identify
from mpa_edge.stages.preflight import preflight
from mpa_edge.stages.run import open_run, remember
from mpa_edge.tasks import get_task
from mpa_edge.types import ParityRecord

PROMPTS = get_task("minicharts").annotation_prompts


def teacher(request) -> str:
    return "Question: How many?\nAnswer: 3" if request.prompt in PROMPTS else "3"


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    folder = tmp_path / os.fsdecode(b"b\xffd")
    folder.mkdir()
    return folder


@pytest.mark.parametrize("relative", [False, True])
def test_a_run_below_such_a_folder(relative, shelf, make_run, images_folder, odd, monkeypatch) -> None:
    shelf(teacher=teacher, student=lambda request: "4")
    shutil.copytree(images_folder, odd / "images")
    asked = odd / "questions.jsonl"
    asked.write_text(json.dumps({"image": "images/1.png", "question": "How many?", "answers": ["3"]}))
    monkeypatch.chdir(odd)
    where = Path() if relative else odd
    made = make_run(evaluate__questions="questions.jsonl")
    run = replace(made, folder=where / "run", images=str(where / "images"))
    run.folder.mkdir()
    remember(run)
    for run_stage in (run_annotate, run_identify):
        run_stage(run)
    again = open_run(str(where / "run"))
    assert Path(again.images or "").samefile(odd / "images")
    assert question_set(again.recipe.evaluate, Path()).samples[0].image == "images/1.png"
    assert count_rows(again.stage_folder("identify")) == 5
    with nullcontext() if relative else pytest.raises(MpaError, match="is not UTF-8, and tokenizers cannot be saved"):
        preflight(again, ("level",))
    assert len(shards_done(again.stage_folder("identify"), ParityRecord)) == 3
