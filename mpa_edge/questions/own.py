"""Your own questions about your own images: JSON lines, or a table as spreadsheets write it.

    {"id": "1", "image": "photos/1.jpg", "question": "What does the sign say?", "answers": ["stop"], "kind": "text"}

    image,question,answers
    photos/1.jpg,What does the sign say?,stop|halt

`id` and `kind` are optional. Image paths are relative to the file.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mpa_edge.errors import MpaError
from mpa_edge.questions import MISSING, QuestionSet
from mpa_edge.types import Sample

SUFFIXES = (".jsonl", ".csv")
NEEDED = ("image", "question", "answers")


def read_samples(path: Path) -> list[Sample]:
    """Rows of a questions file. Raises MpaError that names the line."""
    samples = []
    for number, raw in _table(path) if path.suffix.lower() == ".csv" else _lines(path):
        try:
            sample = Sample.model_validate({"id": str(number)} | raw if isinstance(raw, dict) else raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "row"
            raise MpaError(f"{path}:{number}: {where}: {first['msg'].lower()}; fix the line") from error
        if not sample.answers:
            raise MpaError(f"{path}:{number}: answers is empty; give at least one accepted answer")
        samples.append(sample)
    repeated = [sample_id for sample_id, n in Counter(sample.id for sample in samples).items() if n > 1]
    if repeated:
        raise MpaError(f"{path}: id '{repeated[0]}' occurs more than once: give each question an id of its own")
    if not samples:
        raise MpaError(f"{path} holds no question: write one JSON object a line with id, image, question, answers")
    return samples


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and value of JSON lines."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise MpaError(f"{path}:{number}: not JSON ({error}); fix the line") from error


def _table(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and row of a comma-separated table; other columns are ignored, an empty id or kind counts as none."""
    try:
        reader = csv.DictReader(StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
        if missing:
            raise MpaError(
                f"{path}: the first line names no column {' or '.join(missing)}: begin with image,question,answers"
            )
        for row in reader:
            if any(row.values()):
                cells = {"image": row["image"] or "", "question": row["question"] or ""}
                cells |= {name: row[name] for name in ("id", "kind") if row.get(name)}
                yield reader.line_num, cells | {"answers": split_answers(row["answers"] or "")}
    except UnicodeDecodeError as error:
        raise MpaError(f"{path}: not UTF-8 (byte {error.start + 1}): save it as CSV UTF-8") from error
    except csv.Error as error:
        raise MpaError(f"{path}: not a table with commas ({error}): save it as CSV") from error


def split_answers(cell: str) -> list[Any]:
    """Accepted answers of one cell: between bars, or a JSON list where an answer has a bar itself.

    >>> split_answers("stop| halt |"), split_answers('["a|b", "c"]'), split_answers(" ")
    (['stop', 'halt'], ['a|b', 'c'], [])
    """
    if cell.lstrip().startswith("["):
        try:
            listed = json.loads(cell)
        except ValueError:
            listed = None
        if isinstance(listed, list):
            return listed
    return [part.strip() for part in cell.split("|") if part.strip()]


def read_questions(path: Path, limit: int | None = None) -> QuestionSet:
    """The first `limit` questions of a file, whether or not their images exist."""
    samples = read_samples(path)[:limit]
    return QuestionSet(path.name, path.parent, tuple(samples), tuple(range(len(samples))), dropped={})


def read_own(path: Path, limit: int | None = None) -> QuestionSet:
    """The first `limit` questions of a file whose images exist; the others are left out and counted.

    Raises MpaError where no image exists.
    """
    samples = read_samples(path)
    found = [(i, sample) for i, sample in enumerate(samples) if (path.parent / sample.image).is_file()]
    if not found:
        raise MpaError(f"{path}: no image exists (first: '{samples[0].image}'); give paths relative to the file")
    missing, kept = len(samples) - len(found), found[:limit]
    return QuestionSet(
        name=path.name,
        folder=path.parent,
        samples=tuple(sample for _, sample in kept),
        numbers=tuple(i for i, _ in kept),
        dropped={MISSING: missing} if missing else {},
    )
