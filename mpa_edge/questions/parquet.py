"""Rows of parquet files as hubs publish them: texts first, images only where they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.images.parquet import image_column, parquet_row_bytes
from mpa_edge.questions.benchmark import Benchmark, Row
from mpa_edge.types import Drop

ROWS_AT_ONCE = 1000


def read_rows(benchmark: Benchmark, folder: Path, path: Path) -> Iterator[Row]:
    """All rows without their images; `Row.image` is `FILE.parquet#ROW` relative to the folder.

    Raises MpaError where a file is damaged or has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = path.relative_to(folder).as_posix()
    try:
        opened = path.open("rb")  # pyarrow takes no path that is not UTF-8
        file = pq.ParquetFile(opened, pre_buffer=False)
        columns = _columns(benchmark, path, file.schema_arrow.names)
        for role in ("question", "answers"):
            kind = file.schema_arrow.field(columns[role]).type
            if not _holds_text(kind, plain=role == "question"):
                raise MpaError(
                    f"{path}: column {columns[role]} holds {kind}, not text: name the files of {benchmark.name}"
                )
        batches = file.iter_batches(ROWS_AT_ONCE, columns=list(columns.values()))
        records = (record for batch in batches for record in batch.to_pylist())
        for number, record in enumerate(records):
            cells = {role: record[column] for role, column in columns.items()}
            kind = benchmark.kinds.get(cells.get("kind"))
            yield Row(cells["question"], cells["answers"], f"{name}#{number}", cells.get("id"), kind)
    except (OSError, pa.ArrowException) as error:
        problem = " ".join(str(error).split())[:200]
        raise MpaError(f"{path} cannot be read as parquet ({problem}): download it again") from error


def _holds_text(kind: Any, plain: bool) -> bool:
    """Whether an arrow type is text; where it need not be `plain`, also a number, or a list or `answer` of these."""
    from pyarrow import types

    while not plain and (types.is_list(kind) or types.is_large_list(kind) or types.is_struct(kind)):
        if types.is_struct(kind) and kind.get_field_index("answer") < 0:
            return False
        kind = kind.field("answer").type if types.is_struct(kind) else kind.value_type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return text or types.is_null(kind) or (not plain and (types.is_integer(kind) or types.is_floating(kind)))


def _columns(benchmark: Benchmark, path: Path, names: Sequence[str]) -> dict[str, str]:
    """Role -> column of this file."""
    candidates = {
        "question": benchmark.question_columns,
        "answers": benchmark.answer_columns,
        "kind": benchmark.kind_columns,
        "id": ("question_id",),
    }
    found = {role: column for role, some in candidates.items() if (column := next((c for c in some if c in names), ""))}
    for role in ("question", "answers"):
        if role not in found:
            wanted = " or ".join(candidates[role])
            raise MpaError(f"{path} has no column {wanted}: name the parquet files of {benchmark.name}")
    if image_column(list(names)) is None:
        raise MpaError(f"{path} has no column image: use a version of the data set that contains its images")
    return found


def first_of_each(folder: Path, images: Sequence[str]) -> dict[str, str]:
    """Each `FILE.parquet#ROW` with an image -> the first one of the same content; those without are left out.

    A hub's data set repeats the image for every question about it, and questions about one image are one cluster.
    """
    firsts: dict[str, str] = {}
    same = {}
    for image in images:
        data = parquet_row_bytes(folder / image)
        if not isinstance(data, Drop):
            same[image] = firsts.setdefault(hashlib.sha256(data).hexdigest(), image)
    return same
