"""Rows of parquet files as hubs have them: texts first, pictures only where they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.images.parquet import image_column, parquet_row_bytes
from mpa_edge.questions.benchmark import Benchmark
from mpa_edge.questions.row import Row
from mpa_edge.types import Drop

ROWS_AT_ONCE = 1000
ID = "question_id"


def read_rows(benchmark: Benchmark, folder: Path, files: Sequence[Path]) -> list[Row]:
    """All rows without their pictures; `Row.image` is `FILE.parquet#ROW` relative to the folder.

    Raises MpaError where a file is damaged or has other columns.
    """
    return [row for path in files for row in _rows_of(benchmark, folder, path)]


def _rows_of(benchmark: Benchmark, folder: Path, path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = path.relative_to(folder).as_posix()
    try:
        file = pq.ParquetFile(path, pre_buffer=False)
        columns = _columns(benchmark, path, file.schema_arrow.names)
        batches = file.iter_batches(ROWS_AT_ONCE, columns=list(columns.values()))
        records = (record for batch in batches for record in batch.to_pylist())
        for number, record in enumerate(records):
            cells = {role: record[column] for role, column in columns.items()}
            yield _row(benchmark, cells, f"{name}#{number}")
    except (OSError, pa.ArrowException) as error:
        problem = " ".join(str(error).split())[:200]
        raise MpaError(f"{path} is no parquet file that can be read ({problem}): download it again") from error


def _columns(benchmark: Benchmark, path: Path, names: Sequence[str]) -> dict[str, str]:
    """Role -> column of this file."""
    roles = {
        "question": benchmark.question_columns,
        "answers": benchmark.answer_columns,
        "kind": benchmark.kind_columns,
        "id": (ID,),
    }
    found = {role: next((c for c in candidates if c in names), None) for role, candidates in roles.items()}
    for role, wanted in (("question", benchmark.question_columns), ("answers", benchmark.answer_columns)):
        if found[role] is None:
            raise MpaError(f"{path} has no column {' or '.join(wanted)}: name the parquet files of {benchmark.name}")
    if image_column(list(names)) is None:
        raise MpaError(f"{path} has no column image: take the data set that comes with its pictures")
    return {role: column for role, column in found.items() if column is not None}


def _row(benchmark: Benchmark, cells: Mapping[str, Any], image: str) -> Row:
    kind = cells.get("kind")
    return Row(cells["question"], cells["answers"], image, cells.get("id"), benchmark.kinds.get(kind))


def first_of_each(folder: Path, images: Sequence[str]) -> dict[str, str]:
    """Each `FILE.parquet#ROW` with a picture -> the first one of the same content; those without are left out.

    A hub's data set repeats the picture for every question about it; what is asked of one picture belongs together.
    """
    firsts: dict[str, str] = {}
    same = {}
    for image in images:
        data = parquet_row_bytes(folder / image)
        if not isinstance(data, Drop):
            same[image] = firsts.setdefault(hashlib.sha256(data).hexdigest(), image)
    return same
