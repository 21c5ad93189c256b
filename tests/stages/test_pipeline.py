"""The stages in a row, the plan before and the report after."""

from __future__ import annotations

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.planning.counts import can_evaluate
from mpa_edge.stages import pipeline
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.stages.identify import run_identify
from mpa_edge.stages.pipeline import report, run_stages
from mpa_edge.stages.preflight import estimate, preflight, summary
from mpa_edge.stages.run import Run, open_run, remember
from mpa_edge.tasks import get_task

PROMPTS = get_task("minicharts").annotation_prompts


def teacher(request) -> str:
    return "Question: How many?\nAnswer: 3" if request.prompt in PROMPTS else "3"


def test_the_report_of_half_a_run(shelf, make_run) -> None:
    shelf(teacher=teacher, student=lambda request: "4")
    run = make_run(annotate__samples_per_image=2)
    empty = report(run)
    assert (empty.images, empty.gap, empty.dropped, empty.accuracy, empty.seconds) == (0, 0, {}, None, {})
    run_annotate(run)
    run_identify(run)
    found = report(run)
    assert found.run == str(run.folder)
    assert (found.images, found.annotated, found.verified, found.gap) == (6, 6, 6, 6)
    assert found.dropped == {"duplicate question": 6}
    assert set(found.seconds) == {"annotate", "identify"}
    assert found.gain is None
    assert found.peak_rss_bytes > 10_000_000


def test_too_small_a_gap_ends_the_run_and_keeps_the_annotations(shelf, make_run) -> None:
    models = shelf(teacher=teacher, student=lambda request: "3")
    run = make_run()
    with pytest.raises(MpaError, match=r"only 0 gap items of 6 verified ones .* nothing was trained, the annotations"):
        run_stages(run)
    assert report(run).annotated == 6
    assert not run.stage_folder("level").exists()
    loaded = len(models.loaded)
    with pytest.raises(MpaError, match="only 0 gap items"):
        run_stages(run)
    assert len(models.loaded) == loaded


def test_evaluation_without_questions_is_skipped_and_said(make_run, monkeypatch, capsys) -> None:
    done = []
    stages = {name: lambda run, fresh, name=name: done.append(name) for name in pipeline.STAGES}
    monkeypatch.setattr(pipeline, "STAGES", stages)
    run = make_run(task="okvqa", evaluate__holdout=0.0)
    run_stages(run)
    assert done == ["annotate", "identify", "level", "merge"]
    assert capsys.readouterr().err == (
        "evaluate: skipped, task okvqa has no held-out questions (--set evaluate.questions=FILE.jsonl)\n"
    )
    assert not can_evaluate(run.recipe)
    monkeypatch.setattr(pipeline, "check_earlier", lambda run, name: None)
    with pytest.raises(MpaError, match="task okvqa has no held-out questions: name a file"):
        run_stages(run, ("evaluate",))


def test_the_plan_counts(make_run) -> None:
    planned = summary(make_run(annotate__votes=2, level__max_steps=7))
    assert planned["images"] == 6
    assert planned["stages"]["annotate"] == "30 annotations, 60 votes"
    assert planned["stages"]["identify"] == "up to 30 questions to the student"
    assert planned["stages"]["level"].endswith(", 7 steps")
    assert planned["done"] == []
    assert "to the teacher" in summary(make_run(annotate__votes=0))["stages"]["identify"]
    assert summary(make_run(limit=2))["images"] == 2


def test_the_plan_grows_with_what_it_plans(make_run) -> None:
    small, full = summary(make_run()), summary(make_run(level__method="full"))
    more = summary(make_run(annotate__samples_per_image=200))
    assert more["disk_bytes"] > small["disk_bytes"] + 6 * 195 * 100
    assert full["disk_bytes"] > 2 * small["disk_bytes"]
    assert 1_000_000_000 < small["memory_bytes"] <= full["memory_bytes"] < 3_000_000_000
    few, many = (
        estimate(run).machines[0].stages["level"].memory_bytes for run in (make_run(), make_run(level__method="full"))
    )
    assert few < many
    unknown = summary(make_run(teacher="somebody/a-large-model"))
    assert unknown["disk_bytes"] is unknown["memory_bytes"] is None


def test_a_full_disk_is_noticed_before_anything_is_written(make_run, monkeypatch) -> None:
    monkeypatch.setattr("mpa_edge.runs.files.free_bytes", lambda folder: 1_000_000)
    run = make_run()
    with pytest.raises(MpaError, match="disk full at"):
        preflight(run, ("annotate",))
    assert not run.folder.exists()
    preflight(run, ("identify",))


def test_preflight_names_the_family_and_the_part(make_run, monkeypatch) -> None:
    preflight(make_run(), ("annotate",))
    from mpa_edge import families

    family = families.family_of("idefics3")
    without = families.Family(family.name, family.title, family.model_types, {"language": "x"})
    monkeypatch.setattr("mpa_edge.stages.preflight.family_of", lambda model_type: without)
    with pytest.raises(MpaError, match=r"has no LoRA targets in vision: use level\.targets from language"):
        preflight(make_run(), ("annotate",))


def test_a_remembered_run_opens_from_anywhere(make_run, tmp_path, monkeypatch, images_folder) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text("")
    made = make_run(evaluate__questions="q.jsonl", images={"path": "images"})
    run = Run(made.folder, made.recipe)
    run.folder.mkdir()
    remember(run)
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    again = open_run(str(made.folder))
    assert again.images_folder == images_folder
    assert again.recipe.evaluate.questions == str(tmp_path / "q.jsonl")
    assert again.recipe.level == made.recipe.level


def test_images_of_other_settings_do_not_stay(tmp_path, make_run) -> None:
    def drawn(n: int) -> list[str]:
        recipe = make_run(images={"render": {"n": n, "seed": 7, "style": "target"}}).recipe
        return [entry.name for entry in Run(tmp_path / "run", recipe).entries]

    assert len(drawn(4)) == 4
    assert len(drawn(2)) == 2
    assert drawn(3) == [f"minichart-7-{i:06d}.png" for i in range(3)]
