"""The student answers as an export of it: verdicts and training pictures are those of the device."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from mpa_edge.config.recipe import IdentifyConfig
from mpa_edge.errors import MpaError
from mpa_edge.runs.files import make_folder, read_json, write_json
from mpa_edge.runs.parquet import read_parts
from mpa_edge.stages import pipeline
from mpa_edge.stages.annotate import stage as annotate
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.stages.deployed import FOLDER, deployed_folder, deployed_inputs, note, processor_of, student_of
from mpa_edge.stages.identify import answer_request, identify_inputs, run_identify
from mpa_edge.stages.level.stage import level_inputs
from mpa_edge.stages.plan import plan
from mpa_edge.tasks import get_task
from mpa_edge.types import ParityRecord
from mpa_edge.vlm import load, resolve
from mpa_edge.vlm.transformers import checkpoint
from tests.stages.conftest import Shelf
from tests.vlm.exported import onnx_folder

PROMPTS = get_task("minicharts").annotation_prompts
DEPLOYED = {"identify__student": "as-deployed", "identify__target": "jetson"}


def exported(run, edge: int | None = None) -> Path:
    """An export of the student in its place; with `edge` it sees smaller pictures."""
    folder = make_folder(run.folder / FOLDER) / "onnx-fp32"
    shutil.copytree(onnx_folder("student"), folder)
    if edge:
        values = read_json(folder / "processor_config.json")
        values["image_processor"]["size"] = {"longest_edge": edge}
        write_json(folder / "processor_config.json", values)
    write_json(folder / "manifest.json", {"outputs": {"decoder": "1"}})
    note(run, folder)
    return folder


def test_it_must_be_there_and_be_for_this_recipe(make_run) -> None:
    run = make_run(**DEPLOYED)
    with pytest.raises(MpaError, match="has no student as deployed on jetson: run mpa-edge identify"):
        student_of(run)
    folder = exported(run)
    assert student_of(run) == processor_of(run) == str(folder)
    for other in ({"identify__target": "cpu"}, {"identify__scheme": "onnx-int8"}, {"student": "nursery:teacher"}):
        with pytest.raises(MpaError, match="has no student as deployed"):
            deployed_folder(make_run(**DEPLOYED | other))
    (folder / "artifact.json").unlink()
    with pytest.raises(MpaError, match="has no student as deployed"):
        deployed_folder(run)


def test_a_plain_recipe_knows_nothing_of_it(make_run) -> None:
    run = make_run()
    assert student_of(run) == "nursery:student"
    assert processor_of(run) == resolve("nursery:student")
    assert deployed_inputs(run) == {}


@pytest.mark.parametrize("wrong", [{"student": "as-deployed"}, {"target": "jetson"}, {"scheme": "onnx-int8"}])
def test_student_and_target_go_together(wrong) -> None:
    with pytest.raises(ValidationError, match=r"as-deployed and identify\.target belong together: give both"):
        IdentifyConfig(**wrong)


def test_another_export_is_another_input_of_both_stages(make_run, monkeypatch) -> None:
    run = make_run(**DEPLOYED)
    folder = exported(run)
    monkeypatch.setattr(type(run), "outputs_of", lambda self, stage: "hash")
    before = identify_inputs(run), level_inputs(run)
    write_json(folder / "manifest.json", {"outputs": {"decoder": "2"}, "seconds": 7})
    after = identify_inputs(run), level_inputs(run)
    for one, other in zip(before, after, strict=True):
        assert {key for key in one if one[key] != other[key]} == {"deployed"}
    assert "deployed" not in identify_inputs(make_run())


def test_the_plan_says_so(make_run) -> None:
    assert "to the student as deployed on jetson" in plan(make_run(**DEPLOYED))["stages"]["identify"]
    assert "deployed" not in plan(make_run())["stages"]["identify"]


def test_training_sees_what_the_device_sees(make_run, pictures) -> None:
    run = make_run(**DEPLOYED)
    exported(run, edge=64)
    image = Image.effect_noise((500, 300), 50).convert("RGB")
    shapes = []
    for path in (resolve("nursery:student"), processor_of(run)):
        processor = checkpoint.load_processor(path)
        text = checkpoint.chat_prompt(processor, "How many?")
        shapes.append(processor(text=[text], images=[[image]], return_tensors="pt")["input_ids"].shape[1])
    assert shapes[1] < shapes[0]
    # the words around the picture are the same
    assert (
        len(
            {
                checkpoint.chat_prompt(checkpoint.load_processor(path), "?")
                for path in (resolve("nursery:student"), processor_of(run))
            }
        )
        == 1
    )


def test_something_may_run_before_a_stage_but_not_instead_of_it(make_run, monkeypatch) -> None:
    done = []
    monkeypatch.setattr(
        pipeline, "STAGES", {name: lambda run, fresh, name=name: done.append(name) for name in pipeline.STAGES}
    )
    pipeline.run_stages(
        make_run(),
        ("annotate", "identify"),
        before={"identify": lambda run: done.append("export"), "merge": done.append},
    )
    assert done == ["annotate", "export", "identify"]


@pytest.mark.slow
def test_the_export_answers_in_the_students_place(make_run, monkeypatch, pictures) -> None:
    def teacher(request) -> str:
        return "Question: How many bars are there?\nAnswer: 3" if request.prompt in PROMPTS else "3"

    monkeypatch.setattr(annotate, "load", Shelf({"teacher": teacher}))
    run = make_run(**DEPLOYED, annotate__samples_per_image=1, threads=1)
    run_annotate(run)
    folder = exported(run)
    run_identify(run)
    rows = read_parts(run.stage_folder("identify"), ParityRecord)
    vlm = load(str(folder), name="student", threads=1)
    images = [Image.open(pictures / row.image).convert("RGB") for row in rows]
    said = vlm.answer([answer_request(image, row.question, run) for image, row in zip(images, rows, strict=True)])
    vlm.close()
    assert [row.student_answer for row in rows] == [reply.text for reply in said]
    assert len(rows) == 6
