"""A task of your own, from its file to an aligned student, on images whose answers nobody told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mpa_edge.cli.main import exit_code
from mpa_edge.config.library import load_recipe
from mpa_edge.images.folder import content_id
from mpa_edge.nursery.render import render
from mpa_edge.runs.parquet import each_dropped, each_row
from mpa_edge.stages.level.stage import trained_images
from mpa_edge.stages.run import open_run
from mpa_edge.tasks import get_task
from mpa_edge.types import ParityRecord

# its prompts are words that the built-in teacher knows
COUNTS = """\
name: counts
title: How many bars and shapes there are
prompt: Ask about a {kind}.
kinds: [{name: count}, {name: value}]
answer: {type: number}
suffix: ""
"""
RECIPE = """\
schema_version: 1
name: counted
task: counts.yaml
teacher: nursery:teacher
student: nursery:student
annotate: {samples_per_image: 2, max_new_tokens: 48}
level: {max_steps: 2, batch_size: 4, min_gap: 2, labelled: mine.csv}
evaluate: {holdout: 0.25, votes: 2}
"""


@pytest.mark.slow
@pytest.mark.peer
def test_from_the_task_to_the_aligned_student(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    render(Path("photos"), 24, 5, "target")
    render(Path("labelled"), 2, 6, "target")
    first = next(Path("labelled").glob("*.png"))
    Path("mine.csv").write_text(f"image,question,answers\n{first},How many bars are there?,3\n")
    Path("counts.yaml").write_text(COUNTS)
    Path("my.yaml").write_text(RECIPE)
    assert exit_code(["check", "my.yaml", "counts.yaml"]) == 0
    assert exit_code(["show", "counts.yaml", "--prompts"]) == 0
    assert "Ask about a count.\n" in capsys.readouterr().out

    assert exit_code(["annotate", "my.yaml", "--images", "photos", "--out", "run", "--sheet"]) == 0
    assert capsys.readouterr().out.endswith("run/sheet.html\n")
    assert Path("run/sheet.html").read_text().count("data:image/jpeg") >= 10

    # the run has the task that it was started with, whatever becomes of the file
    Path("counts.yaml").write_text(COUNTS.replace("type: number", "type: text"))
    assert exit_code(["align", "run", "--json"]) == 0
    shown = capsys.readouterr()
    assert "annotate: already done, nothing changed" in shown.err
    found = json.loads(shown.out)
    assert found["verified"] > 5
    assert found["accuracy"] is not None
    rows = list(each_row(Path("run/2-identify"), ParityRecord))
    assert all(re.fullmatch(r"\d+", row.answer) for row in rows)
    reasons = {row.reason for row in each_dropped(Path("run/1-annotate"))}
    assert reasons <= {"answer is no number", "duplicate question", "held out for evaluation"}
    result = json.loads(Path("run/evaluate/evaluate.json").read_text())
    assert result["metric"] == "number"
    assert set(result["unparsable"]) == set(result["accuracy"])
    assert json.loads(Path("run/3-level/manifest.json").read_text())["counts"]["labelled"] == 1

    assert get_task(load_recipe("run/recipe.yaml").task).metric == "number"
    Path("counts.yaml").unlink()
    Path("mine.csv").unlink()
    assert content_id(first) in trained_images(open_run("run"))
    assert exit_code(["evaluate", "run/merged", "--limit", "5", "--dry-run"]) == 0
