"""Own images with own questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.questions.own import read_own, read_samples
from tests.questions import official


def test_a_table_as_a_spreadsheet_saves_it(tmp_path: Path) -> None:
    found = read_own(official.own_csv(tmp_path / "q.csv"))
    assert [sample.question for sample in found.samples] == ["What, then, does it say?", "How many?", "Which one?"]
    assert [sample.answers for sample in found.samples] == [("stop", "halt"), ("5",), ("a|b", "c")]
    assert [sample.kind for sample in found.samples] == ["text", "count", None]
    assert len({sample.id for sample in found.samples}) == 3
    assert found.dropped == {}


def test_json_lines_need_no_id(tmp_path: Path) -> None:
    official.write_image(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "question": "?", "answers": ["x"]},
        {"image": "b.png", "question": "?", "answers": ["y"]},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_own(path)
    assert [sample.id for sample in found.samples] == ["1"]
    assert found.dropped == {"missing image": 1}
    assert found.numbers == (0,)


def test_no_image_is_an_error(tmp_path: Path) -> None:
    path = official.own_csv(tmp_path / "q.csv")
    for image in tmp_path.glob("*.png"):
        image.unlink()
    with pytest.raises(MpaError, match=r"no image exists \(first: '0.png'\); give paths relative to the file$"):
        read_own(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no column image or question or answers: begin with image,question,answers"),
        ("image;question;answers\na;b;c\n", "names no column image"),
        ("image,question\na,b\n", "names no column answers"),
        ("image,question,answers\na.png,What?,\n", ":2: answers is empty"),
        ('image,question,answers\na.png,"What?,x\n', "not a table with commas"),
        ("image,question,answers\n", "holds no question"),
        ("image,question,answers\na.png,What?,\udce9\n", "not UTF-8 (byte 36): save it as CSV UTF-8"),
        ("id,image,question,answers\n1,a,b,c\n1,a,b,c\n", "id '1' occurs more than once"),
        ('image,question,answers\na.png,What?,"[1, 2]"\n', ":2: answers.0: input should be a valid string"),
    ],
)
def test_tables_that_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(MpaError) as caught:
        read_samples(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_with_too_few_or_too_many_cells(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("image,question,answers\na.png,What?,x,more,and more\n\nb.png\n")
    with pytest.raises(MpaError, match=r"q\.csv:4: answers is empty"):
        read_samples(path)
