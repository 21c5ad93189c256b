"""The Parity Identifier over models that say what the test wants."""

from __future__ import annotations

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.runs.manifest import read_manifest
from mpa_edge.runs.parquet import read_dropped, read_parts
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.stages.identify import confirmed, run_identify, verdict
from mpa_edge.tasks import get_task
from mpa_edge.types import ParityRecord

PROMPTS = get_task("minicharts").annotation_prompts
LABEL = "Red"


def red(request):
    return int(request.image.getpixel((0, 0))[0])


def teacher(request) -> str:
    """One question an image; asked again it stands by its answer, in other letters, on all but image 5."""
    if request.prompt in PROMPTS:
        return f"Question: Which color {red(request)}?\nAnswer: {LABEL}"
    return "blue" if red(request) == 5 else "red."


def student(request) -> str:
    """Right on the even images."""
    return "red" if red(request) % 2 == 0 else "reddish"


def verdicts(run) -> dict[str, ParityRecord]:
    return {row.image: row for row in read_parts(run.stage_folder("identify"), ParityRecord)}


@pytest.mark.parametrize("votes", [0, 1, 2])
def test_verdicts(shelf, make_run, votes) -> None:
    models = shelf(teacher=teacher, student=student)
    run = make_run(annotate__votes=votes)
    run_annotate(run)
    run_identify(run)
    found = verdicts(run)
    assert {name: row.verdict for name, row in found.items()} == {
        "0.png": "parity",
        "1.png": "gap",
        "2.png": "parity",
        "3.png": "gap",
        "4.png": "parity",
        "5.png": "unverified",
    }
    assert found["1.png"].student_answer == "reddish"
    assert found["1.png"].teacher_answer == "red."
    assert found["5.png"].student_answer is None
    # the student is not asked what the teacher takes back
    assert {red(request) for request in models.asked("student")} == {0, 1, 2, 3, 4}
    assert models.most_open == 1
    assert all(vlm.closed for vlm in models.loaded)
    manifest = read_manifest(run.stage_folder("identify"))
    assert manifest is not None
    assert [manifest.counts[name] for name in ("gap", "parity", "unverified")] == [2, 3, 1]


def test_what_is_not_confirmed_is_dropped_with_its_reason(shelf, make_run) -> None:
    shelf(teacher=teacher, student=student)
    run = make_run()
    run_annotate(run)
    run_identify(run)
    (row,) = read_dropped(run.stage_folder("identify"))
    assert (row.image, row.reason) == ("5.png", "not confirmed by the teacher")
    assert row.detail == "wrote 'Red', answered 'blue'"


def test_the_prompt_is_that_of_the_task(shelf, make_run) -> None:
    models = shelf(teacher=teacher, student=student)
    run = make_run(task="chartqa")
    prompts = get_task("chartqa").annotation_prompts

    def chart_teacher(request):
        return "Question: Which color?\nAnswer: red" if request.prompt in prompts else "red"

    models.says["teacher"] = chart_teacher
    run_annotate(run)
    run_identify(run)
    assert {request.prompt for request in models.asked("student")} == {
        "Which color?\nAnswer the question using a single word or phrase."
    }
    assert {request.temperature for request in models.asked("student")} == {0.0}


def test_agreement_is_never_containment() -> None:
    from mpa_edge.metrics import METRICS

    for metric in METRICS.values():
        for label, said in (("no", "not"), ("1", "2013"), ("6.8", "68"), ("-5", "5"), ("red", "reddish")):
            assert verdict(label, [label], said, metric.agrees) == "gap", (metric.name, label, said)


def test_a_majority_confirms() -> None:
    def same(a: str, b: str) -> bool:
        return a == b

    assert confirmed("7", ["7", "7", "8"], same)
    assert not confirmed("7", ["7", "8"], same)
    assert not confirmed("7", [], same)


def test_a_second_call_loads_nothing_and_a_lost_part_is_made_again(shelf, make_run) -> None:
    models = shelf(teacher=teacher, student=student)
    run = make_run(annotate__votes=0)
    run_annotate(run)
    run_identify(run)
    before, loaded = verdicts(run), len(models.loaded)
    run_identify(run)
    assert len(models.loaded) == loaded
    (run.stage_folder("identify") / "part-00002.parquet").unlink()
    run_identify(run)
    assert verdicts(run) == before
    # the teacher's own answers were still there
    assert [vlm.name for vlm in models.loaded[loaded:]] == ["student"]
    assert {red(request) for request in models.loaded[-1].asked} == {4}


def test_a_lost_image_is_one_line(shelf, make_run, images_folder) -> None:
    shelf(teacher=teacher, student=student)
    run = make_run()
    run_annotate(run)
    (images_folder / "1.png").unlink()
    with pytest.raises(MpaError, match=r"1\.png was readable before and is not now .* put it back"):
        run_identify(run)


def test_before_annotate(shelf, make_run) -> None:
    with pytest.raises(MpaError, match="has no finished annotate: run mpa-edge"):
        run_identify(make_run())
