"""Parquet files as hubs have them: images inside, read a few at a time."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from mpa_edge.errors import MpaError
from mpa_edge.images import parquet
from mpa_edge.images.folder import open_image
from mpa_edge.questions.published import read_benchmark
from mpa_edge.tasks import get_benchmark
from mpa_edge.types import Drop
from tests.questions import official


@pytest.fixture(autouse=True)
def nothing_open():
    parquet._open_column.cache_clear()
    yield
    parquet._open_column.cache_clear()


def read(name: str, data: Path, split: str | None = None, limit: int | None = None):
    return read_benchmark(get_benchmark(name), str(data), split, limit)


def test_questions_about_one_image_belong_together(tmp_path: Path) -> None:
    found = read("chartqa", official.chartqa_hub(tmp_path))
    assert [sample.kind for sample in found.samples] == ["human"] * 5 + ["augmented"] * 5
    assert [sample.answers for sample in found.samples[:2]] == [("0",), ("1",)]
    assert [sample.image.split("#")[1] for sample in found.samples] == [
        "0",
        "0",
        "2",
        "2",
        "4",
        "4",
        "6",
        "6",
        "8",
        "8",
    ]
    assert [sample.id for sample in found.samples][:2] == ["human-0", "human-1"]


def test_the_right_image_is_opened_in_any_order(tmp_path: Path) -> None:
    found = read("textvqa", official.textvqa_hub(tmp_path))
    assert len(found.samples) == 12
    images = [found.folder / sample.image for sample in found.samples]
    assert {path.parent.name for path in images} == {"data"}
    for at in (0, 5, 11, 3, 3, 4, 10, 0, 7):
        image = open_image(images[at])
        assert not isinstance(image, Drop)
        assert abs(image.getpixel((5, 5))[0] - at) <= 3


def test_a_file_can_be_named_itself(tmp_path: Path) -> None:
    official.chartqa_hub(tmp_path)
    found = read("chartqa", tmp_path / "data" / "test-00000-of-00001.parquet", limit=4)
    assert [sample.id for sample in found.samples] == ["human-0", "human-1", "augmented-5", "augmented-6"]


@pytest.mark.parametrize("name", ["default/test/0000.parquet", "test.parquet", "data/test-0.parquet"])
def test_where_hubs_put_them(name: str, tmp_path: Path) -> None:
    official.chartqa_hub(tmp_path / "made")
    target = tmp_path / "there" / name
    target.parent.mkdir(parents=True)
    (tmp_path / "made" / "data" / "test-00000-of-00001.parquet").rename(target)
    assert len(read("chartqa", tmp_path / "there").samples) == 10


def test_other_columns_of_the_same_benchmark(tmp_path: Path) -> None:
    schema = {"type": pa.string(), "question": pa.string(), "answer": pa.string(), "image": pa.binary()}
    rows = [
        {"type": kind, "question": "How many?", "answer": "14", "image": official.encoded(i)}
        for i, kind in enumerate(("human_test", "augmented_test"))
    ]
    official.parquet(tmp_path / "test-0.parquet", rows, schema)
    found = read("chartqa", tmp_path)
    assert [sample.kind for sample in found.samples] == ["human", "augmented"]
    assert not isinstance(open_image(found.folder / found.samples[1].image), Drop)


def test_images_that_are_not_there_are_counted(tmp_path: Path) -> None:
    cells = [
        {"bytes": official.encoded(1), "path": None},
        {"bytes": None, "path": "../up.png"},
        None,
        {"bytes": None, "path": "beside.png"},
        {"bytes": b"", "path": None},
    ]
    official.write_image(tmp_path / "data" / "beside.png", 9)
    official.write_image(tmp_path / "up.png", 9)
    schema = {"image": official.image_struct(), "query": pa.string(), "label": pa.list_(pa.string())}
    rows = [{"image": cell, "query": "q?", "label": ["a"]} for cell in cells]
    official.parquet(tmp_path / "data" / "test-0.parquet", rows, schema)
    found = read("chartqa", tmp_path)
    assert [sample.id for sample in found.samples] == ["row-0", "row-3"]
    assert found.dropped == {"missing image": 3}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (("image", "label"), "has no column question or query"),
        (("image", "query"), "has no column answers or answer or label"),
        (("query", "label"), "has no column image"),
    ],
)
def test_files_of_something_else(columns: tuple[str, ...], said: str, tmp_path: Path) -> None:
    schema = {"image": pa.binary(), "query": pa.string(), "label": pa.string()}
    rows = [{"image": official.encoded(), "query": "q?", "label": "a"}]
    official.parquet(tmp_path / "test-0.parquet", rows, {name: schema[name] for name in columns})
    with pytest.raises(MpaError, match=said):
        read("chartqa", tmp_path)


@pytest.mark.parametrize(
    ("column", "kind", "value"),
    [
        ("query", pa.list_(pa.string()), ["q?"]),
        ("query", pa.binary(), b"q?"),
        ("query", pa.int64(), 5),
        ("label", pa.binary(), b"a"),
        ("label", pa.list_(pa.binary()), [b"a"]),
        ("label", pa.bool_(), True),
        ("label", pa.struct({"text": pa.string()}), {"text": "a"}),
        ("label", pa.map_(pa.string(), pa.string()), [("a", "b")]),
    ],
)
def test_columns_of_other_types_are_named(column: str, kind: pa.DataType, value: object, tmp_path: Path) -> None:
    schema = {"image": pa.binary(), "query": pa.string(), "label": pa.string()} | {column: kind}
    row = {"image": official.encoded(), "query": "q?", "label": "a"} | {column: value}
    official.parquet(tmp_path / "test-0.parquet", [row], schema)
    with pytest.raises(MpaError, match=f"column {column} holds .*, not text: name the files of chartqa$"):
        read("chartqa", tmp_path)


@pytest.mark.parametrize(
    ("kind", "value", "answers"),
    [
        (pa.large_string(), "a", ("a",)),
        (pa.dictionary(pa.int8(), pa.string()), "a", ("a",)),
        (pa.list_(pa.int64()), [14], ("14",)),
        (pa.list_(pa.struct({"answer": pa.string(), "id": pa.int64()})), [{"answer": "a", "id": 1}], ("a",)),
    ],
)
def test_answers_of_the_types_that_hubs_use(
    kind: pa.DataType, value: object, answers: tuple[str, ...], tmp_path: Path
) -> None:
    schema = {"image": pa.binary(), "query": pa.string(), "label": kind}
    rows = [{"image": official.encoded(), "query": "q?", "label": value}, {"image": b"", "query": None, "label": None}]
    official.parquet(tmp_path / "test-0.parquet", rows, schema)
    found = read("chartqa", tmp_path)
    assert [sample.answers for sample in found.samples] == [answers]
    assert found.dropped == {"no question": 1}


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "test-0.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(MpaError, match=r"cannot be read as parquet .*: download it again$"):
        read("chartqa", tmp_path)


def test_a_row_that_is_not_there(tmp_path: Path) -> None:
    official.chartqa_hub(tmp_path)
    path = tmp_path / "data" / "test-00000-of-00001.parquet"
    assert open_image(f"{path}#99") == Drop("unreadable file", "no row 99")
    assert open_image(f"{tmp_path}/none.parquet#0").reason == "unreadable file"


def test_only_what_is_needed_is_read(tmp_path: Path) -> None:
    """In order, every cell is decoded once: the cursor never goes back."""
    schema = {"image": pa.binary()}
    path = official.parquet(tmp_path / "x.parquet", [{"image": bytes([i])} for i in range(200)], schema, group=50)
    cursor = parquet.ImageColumn(str(path))
    seeks: list[int] = []
    seek = cursor._seek
    cursor._seek = lambda group: (seeks.append(group), seek(group))  # type: ignore[method-assign]
    assert [cursor.value(i) for i in range(200)] == [bytes([i]) for i in range(200)]
    assert seeks == []
    assert cursor.value(120) == bytes([120])
    assert cursor.value(30) == bytes([30])
    assert seeks == [2, 0]
