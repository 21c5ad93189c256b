"""Records in parquet files: for each shard `part-00012.parquet` and, for dropped rows, `dropped-00012.parquet`."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from mpa_edge.errors import MpaError
from mpa_edge.runs.files import write_bytes
from mpa_edge.runs.paths import names_in
from mpa_edge.types import Dropped

if TYPE_CHECKING:
    import pyarrow as pa

Row = TypeVar("Row", bound=BaseModel)
PART = re.compile(r"part-(\d{5,})\.parquet")
SCALARS = {str: "string", int: "int64", float: "float64", bool: "bool"}


def part_path(folder: Path, shard: int) -> Path:
    """File with the rows of a shard."""
    return folder / f"part-{shard:05d}.parquet"


def dropped_path(folder: Path, shard: int) -> Path:
    """File with the dropped rows of a shard."""
    return folder / f"dropped-{shard:05d}.parquet"


def arrow_type(annotation: Any) -> pa.DataType:
    """Arrow type of a field: text, numbers, Literal, lists of those, each possibly None."""
    import pyarrow as pa

    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return arrow_type(next(part for part in args if part is not type(None)))
    if origin is typing.Literal:
        return arrow_type(type(args[0]))
    if origin in (tuple, list):
        return pa.list_(arrow_type(args[0]))
    return getattr(pa, {"bool": "bool_"}.get(SCALARS[annotation], SCALARS[annotation]))()


def schema_of(model: type[BaseModel]) -> pa.Schema:
    """Explicit schema of a record, so that zero rows and all-null columns keep their types."""
    import pyarrow as pa

    return pa.schema([(name, arrow_type(field.annotation)) for name, field in model.model_fields.items()])


def write_rows(path: Path, rows: Sequence[Row], model: type[Row]) -> None:
    """Write records to one parquet file, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([row.model_dump() for row in rows], schema=schema_of(model))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())


def read_rows(path: Path, model: type[Row]) -> list[Row]:
    """Records of one parquet file. Raises MpaError where it is damaged or of another kind."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # not read_table: that one looks for partitions in the folder names
        with path.open("rb") as file:  # pyarrow takes no path that is not UTF-8
            table = pq.ParquetFile(file).read()
    except (OSError, pa.ArrowException) as error:
        raise MpaError(f"{path} cannot be read: delete it and rerun") from error
    if not table.schema.equals(schema_of(model)):
        raise MpaError(f"{path} holds other columns than {model.__name__}: run its stage again with --fresh")
    try:
        with names_in(path):
            return [model.model_validate(row) for row in table.to_pylist()]
    except ValidationError as error:
        first = error.errors()[0]
        raise MpaError(
            f"{path} is damaged ({'.'.join(map(str, first['loc']))}: {first['msg']}): delete it and rerun"
        ) from error


def write_part(folder: Path, shard: int, rows: Sequence[Row], dropped: Sequence[Dropped], model: type[Row]) -> None:
    """Write one shard, the dropped rows first: an existing part means that the shard is complete."""
    write_rows(dropped_path(folder, shard), dropped, Dropped)
    write_rows(part_path(folder, shard), rows, model)


def shards_done(folder: Path, model: type[BaseModel]) -> set[int]:
    """Numbers of the shards that are complete and readable; a damaged one counts as not done."""
    found = (PART.fullmatch(path.name) for path in sorted(folder.glob("part-*.parquet")))
    shards = [int(match.group(1)) for match in found if match]
    return {shard for shard in shards if is_whole(folder, shard, model)}


def is_whole(folder: Path, shard: int, model: type[BaseModel]) -> bool:
    """Whether both files of a shard exist and are readable."""
    return _readable(part_path(folder, shard), model) and _readable(dropped_path(folder, shard), Dropped)


def _readable(path: Path, model: type[BaseModel]) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            return bool(pq.read_schema(file).equals(schema_of(model)))
    except (OSError, pa.ArrowException):
        return False


def read_parts(folder: Path, model: type[Row]) -> list[Row]:
    """Rows of all shards, in the order of the shards."""
    return list(_all(sorted(folder.glob("part-*.parquet")), model))


def each_row(folder: Path, model: type[Row]) -> Iterator[Row]:
    """Like `read_parts`, with one shard in memory at a time."""
    return _all(sorted(folder.glob("part-*.parquet")), model)


def read_dropped(folder: Path) -> list[Dropped]:
    """Dropped rows of all shards, in the order of the shards."""
    return list(each_dropped(folder))


def each_dropped(folder: Path) -> Iterator[Dropped]:
    """Like `read_dropped`, with one shard in memory at a time."""
    return _all(sorted(folder.glob("dropped-*.parquet")), Dropped)


def count_rows(folder: Path) -> int:
    """Number of rows in all shards, from the files' metadata."""
    import pyarrow.parquet as pq

    rows = 0
    for path in folder.glob("part-*.parquet"):
        with path.open("rb") as file:
            rows += pq.read_metadata(file).num_rows
    return rows


def _all(paths: Iterable[Path], model: type[Row]) -> Iterator[Row]:
    for path in paths:
        yield from read_rows(path, model)


def count_reasons(dropped: Iterable[Dropped]) -> dict[str, int]:
    """Dropped rows by reason, most frequent first."""
    counts: dict[str, int] = {}
    for row in dropped:
        counts[row.reason] = counts.get(row.reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
