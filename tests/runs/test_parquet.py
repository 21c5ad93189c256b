from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mpa_edge.errors import MpaError
from mpa_edge.runs import parquet
from mpa_edge.types import Dropped, ParityRecord, Prediction, PseudoAnnotation, Sample

NOTE = PseudoAnnotation(
    id="1", image_id="ab", image="a.png", question="Was ist 'é\U0001f600'?", answer="5", votes=("5", "6"), teacher="t"
)
PARITY = ParityRecord(
    id="1",
    image_id="a",
    image="a",
    question="q",
    answer="a",
    teacher_answer="a",
    student_answer=None,
    verdict="unverified",
)
PREDICTION = Prediction(
    sample_id="1", image_id="a", kind=None, question="q", answers=(), model="base", text="", score=0.5
)
SAMPLE = Sample(id="1", image="a", question="q", answers=("x",))
DROPPED = Dropped(id="1", image="a", stage="annotate", reason="no answer", detail="")


@pytest.mark.parametrize("row", [NOTE, PARITY, PREDICTION, SAMPLE, DROPPED], ids=lambda row: type(row).__name__)
@pytest.mark.parametrize("n", [0, 1, 3])
def test_rows_come_back_as_they_were(tmp_path: Path, row, n: int) -> None:
    path = tmp_path / "part=1" / "x.parquet"
    path.parent.mkdir()
    parquet.write_rows(path, [row] * n, type(row))
    assert parquet.read_rows(path, type(row)) == [row] * n
    assert pq.read_schema(path).equals(parquet.schema_of(type(row)))


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    parquet.write_rows(tmp_path / "a", [NOTE], PseudoAnnotation)
    parquet.write_rows(tmp_path / "b", [NOTE], PseudoAnnotation)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_parts(tmp_path: Path) -> None:
    second = NOTE.model_copy(update={"id": "2"})
    parquet.write_part(tmp_path, 100_000, [second], [], PseudoAnnotation)
    parquet.write_part(tmp_path, 2, [NOTE], [DROPPED, DROPPED], PseudoAnnotation)
    parquet.write_part(tmp_path, 3, [], [], PseudoAnnotation)
    assert parquet.shards_done(tmp_path, PseudoAnnotation) == {2, 3, 100_000}
    assert [row.id for row in parquet.read_parts(tmp_path, PseudoAnnotation)] == ["1", "2"]
    assert parquet.count_reasons(parquet.read_dropped(tmp_path)) == {"no answer": 2}


@pytest.mark.parametrize("harm", ["truncated", "empty", "other record", "no dropped file"])
def test_a_damaged_part_is_not_done(tmp_path: Path, harm: str) -> None:
    parquet.write_part(tmp_path, 1, [NOTE], [], PseudoAnnotation)
    path = parquet.part_path(tmp_path, 1)
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "other record":
        parquet.write_rows(path, [SAMPLE], Sample)
    else:
        parquet.dropped_path(tmp_path, 1).unlink()
    assert parquet.shards_done(tmp_path, PseudoAnnotation) == set()
    if harm != "no dropped file":
        with pytest.raises(MpaError, match="rerun|--fresh"):
            parquet.read_parts(tmp_path, PseudoAnnotation)


def test_a_kill_between_the_two_files_leaves_the_shard_undone(tmp_path: Path) -> None:
    parquet.write_rows(parquet.dropped_path(tmp_path, 1), [DROPPED], Dropped)
    assert parquet.shards_done(tmp_path, PseudoAnnotation) == set()


def test_rows_are_counted_and_read_one_shard_at_a_time(tmp_path: Path, monkeypatch) -> None:
    lost = Dropped(id="x", image="x.png", stage="annotate", reason="empty", detail="")
    for shard, n in enumerate((2, 0, 3)):
        parquet.write_part(tmp_path, shard, [lost] * n, [lost] * (n + 1), Dropped)
    assert parquet.count_rows(tmp_path) == 5
    read, opened = parquet.read_rows, []
    monkeypatch.setattr(parquet, "read_rows", lambda path, model: opened.append(path.name) or read(path, model))
    one_by_one = parquet.each_row(tmp_path, Dropped)
    next(one_by_one)
    assert opened == ["part-00000.parquet"]
    assert list(one_by_one) == [lost] * 4
    assert list(parquet.each_dropped(tmp_path)) == parquet.read_dropped(tmp_path) == [lost] * 8
