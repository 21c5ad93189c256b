"""Each type of answer from what a teacher writes to the verdict: in its form, or dropped with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from mpa_edge.runs.parquet import count_reasons, read_dropped, read_parts
from mpa_edge.stages.annotate.stage import annotate_inputs, run_annotate
from mpa_edge.stages.identify import identify_inputs, run_identify
from mpa_edge.stages.silver import silver_inputs
from mpa_edge.types import ParityRecord

KINDS = [{"name": "plate"}]
TYPES: dict[str, dict[str, Any]] = {
    "number": {"type": "number", "unit": "bar", "relative": 0.05},
    "choice": {"type": "choice", "choices": ["red", "green"]},
    "json": {"type": "json", "fields": {"serial": "text", "bar": "number"}},
}
A1 = '{"serial": "A 1", "bar": 3.5}'
# what the teacher writes, what becomes of it, its votes, the student's answer, the verdict
SAID = {
    "number": [
        ("3,50 bar.", "3.50", "3.5", "3.45 bar", "parity"),
        ("3.5 bar", "3.5", "3.5 bar", "35", "gap"),
        ("3.5 bar", "3.5", "4.5 bar", "3.5", "unverified"),
        ("about three", "answer is no number", "", "", None),
    ],
    "choice": [
        ("Red.", "red", "red", "It is red.", "gap"),
        ("a green", "green", "Green.", "green", "parity"),
        ("blue", "answer is none of the choices", "", "", None),
    ],
    "json": [
        ('{"bar": "3,5", "serial": "A 1", "x": 0}', A1, '{"serial": "a 1", "bar": 3.5}', f"```\n{A1}\n```", "parity"),
        ('{\n"serial": "A1",\n"bar": null\n}', '{"serial": "A1", "bar": null}', '{"serial": "A1"}', "A1", "gap"),
        ('{"serial": "A1"}', '{"serial": "A1", "bar": null}', '{"serial": "A1", "bar": 2}', "", "unverified"),
        ("A1, 3.5 bar", "answer is no JSON object with the fields", "", "", None),
        ('{"serial": "A1", "bar": "high"}', "answer is no JSON object with the fields", "", "", None),
    ],
}


@pytest.mark.parametrize("kind", TYPES)
def test_from_the_teachers_words_to_the_verdict(shelf, make_run, kind: str) -> None:
    said = SAID[kind]

    def number(request) -> int:
        return int(request.image.getpixel((0, 0))[0]) % len(said)

    def teacher(request) -> str:
        wrote, _, vote, _, _ = said[number(request)]
        return vote if request.prompt.startswith("What") else f"Question: What does it say?\nAnswer: {wrote}"

    def student(request) -> str:
        return said[number(request)][3]

    task = {"name": "mine", "objective": "Ask about the plate.", "kinds": KINDS, "answer": TYPES[kind]}
    shelf(teacher=teacher, student=student)
    run = make_run(task=task, annotate__samples_per_image=1, level__min_gap=1, evaluate__holdout=0.0)
    run_annotate(run)
    run_identify(run)
    rows = {row.image: row for row in read_parts(run.stage_folder("identify"), ParityRecord)}
    for i, (_, answer, _, _, verdict) in enumerate(said):
        if verdict is None:
            continue
        row = rows[f"{i}.png"]
        assert (row.answer, row.verdict) == (answer, verdict)
    reasons = count_reasons(read_dropped(run.stage_folder("annotate")))
    assert reasons.keys() == {reason for _, reason, _, _, verdict in said if verdict is None}


def test_another_tolerance_keeps_what_was_annotated(shelf, make_run) -> None:
    shelf(teacher=lambda request: "Question: How high?\nAnswer: 3.5" if "Ask" in request.prompt else "3.5", student=str)
    task = {"name": "mine", "objective": "Ask about the plate.", "kinds": KINDS, "answer": TYPES["number"]}
    wider = {**task, "answer": {**TYPES["number"], "relative": 0.1}}
    other = {**task, "answer": {**TYPES["number"], "unit": "psi"}}
    before, after, else_ = (make_run(task=one, annotate__samples_per_image=1) for one in (task, wider, other))
    run_annotate(before)
    assert annotate_inputs(after) == annotate_inputs(before) != annotate_inputs(else_)
    assert identify_inputs(after) != identify_inputs(before)
    assert silver_inputs(after) != silver_inputs(before)


def test_an_object_inside_the_teachers_own_object_and_a_copied_example(shelf, make_run) -> None:
    task = {
        "name": "mine",
        "objective": "Ask about the plate.",
        "kinds": KINDS,
        "answer": TYPES["json"],
        "examples": [{"question": "What does it say?", "answer": '{"serial": "B2", "bar": 1}'}],
    }
    wrote = {
        0: '{"question": "What does it say?", "answer": {"serial": "A1", "bar": 3.5}}',
        1: 'Question: What does it say?\nAnswer: {"serial": "B2", "bar": 1}',
    }
    shelf(teacher=lambda request: wrote.get(int(request.image.getpixel((0, 0))[0]), "none"))
    run = make_run(task=task, annotate__samples_per_image=1, annotate__votes=0, evaluate__holdout=0.0)
    run_annotate(run)
    assert count_reasons(read_dropped(run.stage_folder("annotate"))) == {
        "no question": 4,
        "copied from the task's examples": 1,
    }
