"""The Pseudo Annotator over a teacher that says what the test wants."""

from __future__ import annotations

import pytest

from mpa_edge.runs.manifest import read_manifest
from mpa_edge.runs.parquet import count_reasons, read_dropped, read_parts
from mpa_edge.stages.annotate import stage as annotate
from mpa_edge.stages.annotate.parsing import annotation_request
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.stages.run import stable_seed
from mpa_edge.tasks import get_task
from mpa_edge.types import PseudoAnnotation

PROMPTS = get_task("minicharts").annotation_prompts


def red(request):
    return int(request.image.getpixel((0, 0))[0])


def writes(request) -> str:
    """Another question for every prompt; the greedy answer to any of them is 7."""
    if request.prompt in PROMPTS:
        return f"Question: What is {PROMPTS.index(request.prompt)} of {red(request)}?\nAnswer: 7."
    return "7" if request.temperature == 0 else "8"


def rows_of(run) -> list[PseudoAnnotation]:
    return read_parts(run.stage_folder("annotate"), PseudoAnnotation)


def test_prompts_take_turns_and_the_first_round_is_greedy(shelf, make_run, images_folder) -> None:
    run, task = make_run(annotate__samples_per_image=7), get_task("minicharts")
    config = run.recipe.annotate
    requests = [annotation_request(None, "id", n, task, config, 3) for n in range(7)]
    assert [request.prompt for request in requests] == [*PROMPTS, *PROMPTS[:2]]
    assert [request.temperature for request in requests] == [0.0] * 5 + [1.0] * 2
    assert len({request.seed for request in requests}) == 7
    assert requests[6].seed == stable_seed(3, "annotate", "id", 6)
    assert requests[0].max_new_tokens == config.max_new_tokens


def test_rows_are_whole_and_canonical(shelf, make_run) -> None:
    models, run = shelf(teacher=writes), make_run()
    run_annotate(run)
    rows = rows_of(run)
    assert len(rows) == 30
    assert rows[0].question == "What is 0 of 0?"
    assert {row.answer for row in rows} == {"7"}
    assert {row.votes for row in rows} == {("7",)}
    assert [row.image for row in rows] == [f"{i}.png" for i in range(6) for _ in range(5)]
    assert rows[0].id == f"{run.entries[0].id}-00"
    assert len({row.id for row in rows}) == 30
    assert models.loaded[0].closed


def test_votes_are_greedy_first_and_use_the_short_answer(shelf, make_run) -> None:
    models, run = shelf(teacher=writes), make_run(annotate__votes=3, identify__max_new_tokens=9)
    run_annotate(run)
    assert {row.votes for row in rows_of(run)} == {("7", "8", "8")}
    asked = [request for request in models.asked("teacher") if request.prompt not in PROMPTS]
    assert {request.max_new_tokens for request in asked} == {9}
    assert len({request.seed for request in asked}) == 90


def test_no_votes(shelf, make_run) -> None:
    models, run = shelf(teacher=writes), make_run(annotate__votes=0)
    run_annotate(run)
    assert {row.votes for row in rows_of(run)} == {()}
    assert len(models.asked("teacher")) == 30


def test_what_is_dropped_has_a_reason_and_a_count(shelf, make_run, capsys) -> None:
    said = {
        0: "Question: How many bars?\nAnswer: 3",
        1: "no idea",
        2: ("Question: How many bars?\nAnswer: 3", "length"),
        3: ("", "filtered"),
        4: "Question: Which one?\nAnswer: the one that is on the far left side",
        5: "Question: HOW many bars?\nAnswer: 4",
    }

    def odd(request):
        return said[red(request)] if request.prompt in PROMPTS else "3"

    shelf(teacher=odd)
    run = make_run(annotate__samples_per_image=2)
    run_annotate(run)
    rows, dropped = rows_of(run), read_dropped(run.stage_folder("annotate"))
    # the second sample of an image repeats the first, whatever the case of its letters
    assert [(row.image, row.answer) for row in rows] == [("0.png", "3"), ("5.png", "4")]
    assert count_reasons(dropped) == {
        "answer too long": 2,
        "cut at max_new_tokens": 2,
        "duplicate question": 2,
        "no question": 2,
        "withheld by the teacher's server": 2,
    }
    assert all(row.stage == "annotate" for row in dropped)
    manifest = read_manifest(run.stage_folder("annotate"))
    assert manifest is not None
    assert {key: manifest.counts[key] for key in ("images", "annotated", "dropped")} == {
        "images": 6,
        "annotated": 2,
        "dropped": 10,
    }
    assert "annotate: 2 question-answer pairs on 6 images, 10 dropped (answer too long: 2," in capsys.readouterr().err


def test_the_same_question_about_two_images_is_kept(shelf, make_run) -> None:
    shelf(teacher=lambda request: "Question: How many?\nAnswer: 3" if request.prompt in PROMPTS else "3")
    run = make_run()
    run_annotate(run)
    assert [row.image for row in rows_of(run)] == [f"{i}.png" for i in range(6)]


def test_broken_images_cost_one_row_each(shelf, make_run, images_folder) -> None:
    (images_folder / "2.png").write_bytes(b"")
    (images_folder / "4.png").write_bytes((images_folder / "3.png").read_bytes())
    models, run = shelf(teacher=writes), make_run()
    run_annotate(run)
    dropped = read_dropped(run.stage_folder("annotate"))
    assert {(row.image, row.reason) for row in dropped} == {("2.png", "empty file"), ("4.png", "duplicate image")}
    assert {red(request) for request in models.asked("teacher")} == {0, 1, 3, 5}
    manifest = read_manifest(run.stage_folder("annotate"))
    assert manifest is not None
    assert manifest.counts["images"] == 4


@pytest.mark.parametrize("changed", [{"annotate__batch_size": 1}, {"annotate__shard_size": 100}])
def test_how_the_work_is_cut_does_not_matter(shelf, make_run, changed) -> None:
    shelf(teacher=writes)
    one, other = make_run("one"), make_run("other", **changed)
    run_annotate(one)
    run_annotate(other)
    assert rows_of(one) == rows_of(other)


def test_few_images_in_memory_give_the_same_rows(shelf, make_run, monkeypatch) -> None:
    models = shelf(teacher=writes)
    one, other = make_run("one", annotate__shard_size=6), make_run("other", annotate__shard_size=6)
    run_annotate(one)
    assert max(models.loaded[0].batches) == 30
    monkeypatch.setattr(annotate, "groups", lambda items, opener: ([(item, opener(item))] for item in items))
    run_annotate(other)
    assert max(models.loaded[1].batches) == 5
    assert rows_of(one) == rows_of(other)


def test_a_second_call_loads_nothing(shelf, make_run, capsys) -> None:
    models, run = shelf(teacher=writes), make_run()
    run_annotate(run)
    run_annotate(make_run())
    assert len(models.loaded) == 1
    assert capsys.readouterr().err.endswith("annotate: already done, nothing changed\n")


def test_only_missing_shards_are_made_again(shelf, make_run, capsys) -> None:
    models, run = shelf(teacher=writes), make_run()
    run_annotate(run)
    before = rows_of(run)
    (run.stage_folder("annotate") / "part-00001.parquet").unlink()
    run_annotate(make_run())
    assert {red(request) for request in models.loaded[1].asked} == {2, 3}
    assert rows_of(run) == before
    assert "annotate: resuming" in capsys.readouterr().err


def test_other_settings_start_over_and_say_why(shelf, make_run, images_folder, capsys) -> None:
    models = shelf(teacher=writes)
    run_annotate(make_run())
    run_annotate(make_run(annotate__batch_size=3))
    assert len(models.loaded) == 1
    run_annotate(make_run(annotate__votes=2))
    assert len(models.loaded) == 2
    assert "annotate: starting over because of changes in config\n" in capsys.readouterr().err
    (images_folder / "0.png").unlink()
    run_annotate(make_run(annotate__votes=2))
    assert "annotate: starting over because of changes in images\n" in capsys.readouterr().err


def test_limit(shelf, make_run) -> None:
    shelf(teacher=writes)
    run = make_run(limit=3)
    run_annotate(run)
    assert {row.image for row in rows_of(run)} == {"0.png", "1.png", "2.png"}
