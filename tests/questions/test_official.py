"""The benchmarks' own files, as people download them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.metrics import get_metric
from mpa_edge.questions.published import read_benchmark
from mpa_edge.tasks import benchmarks, get_benchmark, get_task
from tests.questions import official

MAKERS = {
    "textvqa": official.textvqa,
    "chartqa": official.chartqa,
    "okvqa": official.okvqa,
    "stvqa": official.stvqa,
}


def read(name: str, data: Path, split: str | None = None, limit: int | None = None):
    return read_benchmark(get_benchmark(name), str(data), split, limit)


def refused(name: str, data: Path, split: str | None = None) -> str:
    with pytest.raises(MpaError) as caught:
        read(name, data, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", MAKERS)
def test_every_benchmark_is_read_and_can_be_scored(name: str, tmp_path: Path) -> None:
    found = read(name, MAKERS[name](tmp_path))
    score = get_metric(get_task(name).metric).score
    assert found.samples
    assert len({sample.id for sample in found.samples}) == len(found.samples) == len(found.numbers)
    for sample in found.samples:
        assert (found.folder / sample.image).is_file()
        assert max(score(answer, sample.answers) for answer in sample.answers) > 0.5


def test_all_benchmarks_have_a_maker() -> None:
    assert sorted(MAKERS) == list(benchmarks())


def test_textvqa(tmp_path: Path) -> None:
    found = read("textvqa", official.textvqa(tmp_path))
    assert found.name == "textvqa val"
    assert [sample.id for sample in found.samples] == ["34602", "34603", "34604"]
    assert all(len(sample.answers) == 10 for sample in found.samples)
    assert found.samples[1].answers[-1] == "unanswerable"
    assert found.samples[2].question == "qué dice el letrero?"
    assert found.samples[0].image == "train_images/003a8ae2ef43b901.jpg"
    assert found.dropped == {"missing image": 1}
    assert found.numbers == (0, 1, 2)


def test_chartqa_has_two_kinds_and_repeated_rows(tmp_path: Path) -> None:
    found = read("chartqa", official.chartqa(tmp_path))
    assert [sample.kind for sample in found.samples] == ["human"] * 3 + ["augmented"] * 3
    assert [sample.id for sample in found.samples][:4] == ["human-0", "human-1", "human-2", "augmented-0"]
    assert found.samples[0].answers == ("14",)
    assert found.samples[3].question == found.samples[4].question
    assert found.mean_of_kinds
    assert found.samples[0].image == "test/png/41699051005347.png"


def test_a_limit_takes_from_every_kind(tmp_path: Path) -> None:
    found = read("chartqa", official.chartqa(tmp_path), limit=4)
    assert [sample.id for sample in found.samples] == ["human-0", "human-1", "augmented-0", "augmented-1"]
    assert found.numbers == (0, 1, 3, 4)


def test_okvqa_joins_questions_and_annotations(tmp_path: Path) -> None:
    found = read("okvqa", official.okvqa(tmp_path))
    assert [sample.id for sample in found.samples] == ["2971475", "3397615"]
    assert [sample.kind for sample in found.samples] == ["Sports and Recreation", "Plants and Animals"]
    assert found.samples[0].answers == ("race",) * 10
    assert found.samples[0].image == "val2014/COCO_val2014_000000297147.jpg"
    assert found.dropped == {"no answers": 1, "missing image": 1}


def test_okvqa_files_may_lie_apart(tmp_path: Path) -> None:
    official.okvqa(tmp_path)
    for name in ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"):
        folder = tmp_path / name.split("_")[0]
        folder.mkdir(exist_ok=True)
        shutil.move(tmp_path / name, folder / name)
    assert len(read("okvqa", tmp_path).samples) == 2


def test_stvqa_takes_the_papers_split_where_it_is(tmp_path: Path) -> None:
    official.stvqa(tmp_path, below="train/data")
    held_out = read("stvqa", tmp_path)
    assert held_out.name == "stvqa held-out"
    assert "not the paper's split" in held_out.note
    every = read("stvqa", tmp_path, "train")
    chosen = {sample.id for sample in held_out.samples}
    assert 0 < len(chosen) < len(every.samples) == 40
    assert chosen < {sample.id for sample in every.samples}
    assert every.samples[0].answers == ("Ünï 0", "0")
    official.stvqa(tmp_path, "train_task_1_onePerImage_val.json", n=5, below="train/data")
    assert read("stvqa", tmp_path).name == "stvqa paper"
    assert len(read("stvqa", tmp_path).samples) == 5


def test_the_held_out_images_do_not_depend_on_the_others(tmp_path: Path) -> None:
    few, many = (read("stvqa", official.stvqa(tmp_path / str(n), n=n), "held-out") for n in (20, 40))
    assert {sample.image for sample in few.samples} == {s.image for s in many.samples if int(s.id) < 9020}


@pytest.mark.parametrize("deeper", ["ChartQA Dataset", "unzipped/ChartQA Dataset"])
def test_the_folder_may_lie_a_little_deeper(deeper: str, tmp_path: Path) -> None:
    official.chartqa(tmp_path / deeper)
    found = read("chartqa", tmp_path)
    assert found.samples[0].image == f"{deeper}/test/png/41699051005347.png"


def test_repeated_ids_become_unique_and_stay_stable(tmp_path: Path) -> None:
    rows = [
        official.textvqa_row(7, "a", "one?"),
        official.textvqa_row(7, "b", "two?"),
        official.textvqa_row(8, "a", "x?"),
    ]
    official.textvqa(tmp_path, rows)
    assert [sample.id for sample in read("textvqa", tmp_path).samples] == ["7", "7#2", "8"]
    (tmp_path / "train_images" / "a.jpg").unlink()
    assert [sample.id for sample in read("textvqa", tmp_path).samples] == ["7#2"]


def test_numbers_become_texts(tmp_path: Path) -> None:
    official.chartqa(tmp_path)
    path = tmp_path / "test" / "test_human.json"
    rows = json.loads(path.read_text())
    rows[0]["label"], rows[1]["label"], rows[2]["label"] = 14, 0.57, None
    path.write_text(json.dumps(rows))
    found = read("chartqa", tmp_path)
    assert [sample.answers for sample in found.samples[:2]] == [("14",), ("0.57",)]
    assert found.dropped == {"no answers": 1}


# --- what is refused, in one line -------------------------------------------------------------------------------------


def test_a_wrong_folder_says_what_was_looked_for_and_where(tmp_path: Path) -> None:
    said = refused("chartqa", tmp_path)
    assert said.startswith(f"{tmp_path} holds no chartqa test split: looked there and two levels below for ")
    assert "test/test_human.json and test/test_augmented.json or test-*.parquet" in said
    assert said.endswith("--data (github.com/vis-nlp/ChartQA, folder ChartQA Dataset)")


def test_a_folder_of_another_split_names_it(tmp_path: Path) -> None:
    official.chartqa(tmp_path, "val")
    assert refused("chartqa", tmp_path) == f"{tmp_path} holds no chartqa test split: use --split val, which it has"
    assert len(read("chartqa", tmp_path, "val").samples) == 6


def test_an_unknown_split_names_the_known_ones(tmp_path: Path) -> None:
    said = refused("textvqa", official.textvqa(tmp_path), "validation")
    assert said == "textvqa has no split 'validation': use --split val or train or test"


def test_no_image_at_all_is_an_error(tmp_path: Path) -> None:
    official.textvqa(tmp_path)
    shutil.rmtree(tmp_path / "train_images")
    said = refused("textvqa", tmp_path)
    assert "no image is in" in said
    assert "'003a8ae2ef43b901.jpg'" in said
    assert "train_images" in said


def test_a_test_set_without_answers_is_no_evaluation(tmp_path: Path) -> None:
    said = refused("stvqa", official.stvqa(tmp_path, "test_task_1.json", n=3, answers=False), "test")
    assert said.startswith("stvqa test comes with no answers: choose another --split")
    rows = [official.textvqa_row(1, "a", "x?", [""] * 10)]
    assert "no answers" in refused("textvqa", official.textvqa(tmp_path, rows, "test"), "test")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "not as textvqa publishes it"),
        ('{"data": [{"question": "a"}]}', "KeyError: 'image_id'"),
        ('{"data": []}', "holds no question"),
        ('{"data": 5}', "not as textvqa publishes it"),
    ],
)
def test_damaged_annotations(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(content)
    assert said in refused("textvqa", tmp_path)


def test_a_image_outside_of_the_folder_is_missing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    official.write_image(tmp_path / "secret.jpg")
    official.textvqa(data, [official.textvqa_row(1, "../../secret", "x?"), official.textvqa_row(2, "a", "y?")])
    (data / "train_images").mkdir(exist_ok=True)
    official.write_image(data / "train_images" / "a.jpg")
    found = read("textvqa", data)
    assert [sample.id for sample in found.samples] == ["2"]
    assert found.dropped == {"missing image": 1}


def test_names_are_no_patterns(tmp_path: Path) -> None:
    official.chartqa(tmp_path / "all [2022]*")
    assert len(read("chartqa", tmp_path / "all [2022]*").samples) == 6


def test_annotations_of_another_set_are_named(tmp_path: Path) -> None:
    official.okvqa(tmp_path)
    path = tmp_path / "mscoco_val2014_annotations.json"
    path.write_text(path.read_text().replace('"question_id": ', '"question_id": 9'))
    said = refused("okvqa", tmp_path)
    assert said.startswith(
        "OpenEnded_mscoco_val2014_questions.json and mscoco_val2014_annotations.json share no question_id"
    )
    assert said.endswith("the annotations belong to other questions, use those of one set")
