"""Own images with own questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.questions.own import read_own, read_questions
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


HEAD = "image,question,answers\n"
ROW = {"image": "a.png", "question": "What?", "answers": ["x"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":1: the first line names no column image or question or answers: begin with image,question,answers"),
        ("\n\n", ":1: the first line names no column image"),
        ("image;question;answers\na;b;c\n", ":1: the columns are separated by semicolons (';'): save"),
        ("\ufeffid; image ;question;answers\n1;a;b, c;d\n", ":1: the columns are separated by semicolons (';'): save"),
        ("image\tquestion\tanswers\na\tb, c\td\n", ":1: the columns are separated by tabs ('\\t'): save"),
        ("image|question|answers\na|b|c\n", ":1: the columns are separated by bars"),
        ("image,question\na,b\n", ":1: the first line names no column answers"),
        ("image,question,answers,question\na,b,c,d\n", ":1: two columns are named question: rename"),
        (HEAD + "a.png,What is A, roughly?,5\n", ":2: 4 cells for 3 columns: write a cell with a comma in quotes"),
        (HEAD + "a.png,What is A?,5,\n", ":2: 4 cells for 3 columns"),
        ("image,question,answers,\na.png,What is A, roughly?,5\n", ":2: 4 cells for 3 columns"),
        (HEAD + "a.png,What?,x\n\nb.png\n", ":4: 1 cells for 3 columns"),
        (HEAD + 'a.png,"two\nlines",x\n,,\nb.png,What?\n', ":5: 2 cells for 3 columns"),
        (HEAD + 'a.png,What?,x\na.png,"What?,x\n' + "b.png,What?,x\n" * 9, ":3: not a table with commas"),
        (HEAD, " holds no question: write one a line"),
        (HEAD + "a.png,What?,\n", " holds no question, empty answer in 1 rows"),
        (
            HEAD + "a.png,What?,x\na.png,What?,\udce9\n",
            ":3: not UTF-8 (byte 50 of the file is 0xe9): save the file as UTF-8",
        ),
        (HEAD + "a.png,What?,x\na.png,Wh\0t?,x\n", ":3: not UTF-8 (byte 46 of the file is NUL, as in UTF-16): save"),
        ("id," + HEAD + "1,a,b,c\n\n1,a,b,c\n", ":4: id '1' is also that of line 2: give each question its own"),
        ("id," + HEAD + ",a,b,c\n2,a,b,c\n", ":3: id '2' is also that of line 2"),
        (HEAD + 'a.png,What?,"[1, 2]"\n', ":2: one of the answers is a number: write it as text"),
        (HEAD + "a.png,What?,\"['stop', 'halt']\"\n", ":2: answers is a list, but not a JSON list: write stop|halt"),
        (HEAD + "a.png,What?,['a' 'b']\n", ":2: answers is a list, but not a JSON list"),
        (HEAD + "a.png,What?,\"('stop', 'halt')\"\n", ":2: an answer is a list as Python prints it"),
        (HEAD + "a.png,What?,\"array(['stop'], dtype=object)\"\n", ":2: an answer is a list as Python prints it"),
    ],
)
def test_tables_that_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(MpaError) as caught:
        read_questions(path)
    assert f"{path}{said}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"image": "caf\xe9.png"}', ":2: not UTF-8 (byte 73 of the file is 0xe9): save the file as UTF-8"),
        (b"\0", ":2: not UTF-8 (byte 59 of the file is NUL"),
        (b'{"image": "a.png", "question": "What?", "answers": "x"}', ":2: answers is text: write a list"),
        (b'{"image": "a.png", "question": "What?", "answers": [5]}', ":2: one of the answers is a number: write it"),
        (b'{"image": "a.png", "question": "What?", "answers": [true]}', ":2: one of the answers is a boolean"),
        (b'{"image": "a.png", "question": "What?", "answers": ["a", null]}', ":2: one of the answers is null"),
        (b'{"image": "a.png", "question": "What?", "answers": [["a"]]}', ":2: one of the answers is a list"),
        (
            b'{"image": "a.png", "question": "What?", "answers": ["[\'a\', \'b\']"]}',
            ":2: an answer is a list as Python",
        ),
        (b'{"image": "a.png", "question": ["What?"], "answers": ["x"]}', ":2: question is a list: write it as text"),
        (
            b'{"image": "a.png", "question": "What \\ud83d?", "answers": ["x"]}',
            ":2: \\ud83d is no character: remove it",
        ),
        (b'{"image": "a.png", "question": "What?", "answers": ["x\\u0000"]}', ":2: \\u0000 is no character"),
        (b'{"image": "a.png", "question": "What?"}', ":2: no answers: write the row as in {"),
        (b'{"image": "a.png", "image": "b.png"}', ":2: not JSON (key 'image' stands there twice)"),
        (b'{"image": "a.png", "question": "What?", "answers": ["x"],}', ":2: not JSON ("),
        (b'{"image": "a.png", "question": "What?", "answers": ["x"]},', ":2: not JSON (Extra data, column 58)"),
        (b'{"id": 1.5, "image": "a.png", "question": "What?", "answers": ["x"]}', ":2: id is a number"),
        (b'{"id": "1", "image": "a.png", "question": "What?", "answers": ["x"]}', ":2: id '1' is also that of line 1"),
        (b"[" * 100_000, ":2: not JSON ("),
    ],
    ids=range(18),
)
def test_json_lines_that_are_refused(text: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n" + text)
    with pytest.raises(MpaError) as caught:
        read_questions(path)
    assert f"{path}{said}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["q.csv", "q.jsonl"])
def test_other_encodings_are_named(encoding: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes((HEAD + "a.png,What?,x\n").encode(encoding))
    with pytest.raises(MpaError, match=rf"{name}:1: not UTF-8.*\(byte \d of the file .*: save the file as UTF-8$"):
        read_questions(path)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("image\tquestion\tanswers\n")
    with pytest.raises(MpaError, match=r"q\.tsv' is no \.jsonl or \.csv file: save the questions as one$"):
        read_questions(tmp_path / "q.tsv")
    (tmp_path / "list.jsonl").write_text(json.dumps([ROW], indent=2))
    with pytest.raises(MpaError, match=r"list\.jsonl:1: not JSON \(a list over many lines\): write one object a line"):
        read_questions(tmp_path / "list.jsonl")


def test_a_table_and_json_lines_say_the_same(tmp_path: Path) -> None:
    """Extra columns and keys, ids that are numbers, empty ids and kinds, all line ends, a byte order mark."""
    table, lines = tmp_path / "q.csv", tmp_path / "q.jsonl"
    rows = [ROW | {"id": 7, "kind": 3, "note": "n"}, ROW | {"id": "x", "kind": "", "note": 1}, ROW | {"id": None}]
    cells = "id,image,question,answers,kind,note\n7,a.png,What?,x,3,n\nx,a.png,What?,x,,1\n,a.png,What?,x,,\n"
    for end in ("\n", "\r\n", "\r"):
        lines.write_bytes(b"\xef\xbb\xbf" + end.join([*map(json.dumps, rows), ""]).encode())
        table.write_bytes(b"\xef\xbb\xbf" + cells.replace("\n", end).encode())
        asked = [read_questions(path).samples for path in (table, lines)]
        assert [[(s.id, s.kind) for s in samples] for samples in asked] == [
            [("7", "3"), ("x", None), ("4", None)],
            [("7", "3"), ("x", None), ("3", None)],
        ]
        assert {s.answers for samples in asked for s in samples} == {("x",)}


def test_silence_is_never_right(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [ROW, ROW | {"answers": [""]}, ROW | {"answers": ["x", " "]}, ROW | {"answers": []}, ROW | {"question": " "}]
    path.write_text("\n".join(map(json.dumps, [*rows, ROW])))
    found = read_questions(path)
    assert [(sample.id, number) for sample, number in zip(found.samples, found.numbers, strict=True)] == [
        ("1", 0),
        ("6", 5),
    ]
    assert found.dropped == {"empty answer": 3, "no question": 1}


def test_long_cells_and_quoted_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_bytes(b'image,question,answers\r\na.png,"' + b"w" * 10**6 + b'\r\n?",x\r\nb.png,What?,y\r\n')
    first, second = read_questions(path).samples
    assert (len(first.question), first.id, second.id) == (10**6 + 3, "2", "4")
