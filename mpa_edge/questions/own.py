"""Your own questions about your own images: JSON lines, or a table as spreadsheets write it.

    {"id": "1", "image": "photos/1.jpg", "question": "What does the sign say?", "answers": ["stop"], "kind": "text"}

    image,question,answers
    photos/1.jpg,What does the sign say?,stop|halt

`id`, `kind` and `group` are optional, other keys and columns are ignored. Image paths are relative to the file; in the
questions that a teacher wrote (`"truth": "teacher"` in each row) they are relative to the images of its run. A file is
read whole and strictly before anything is asked: a fault is an MpaError that names the line and ends with the fix.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.metrics.reading import answers_of, decode, is_object, json_lines, no_character, text_of
from mpa_edge.questions import MISSING, QuestionSet
from mpa_edge.runs.manifest import RUN_FILE, images_of_run
from mpa_edge.types import Sample, Truth

SUFFIXES = (".jsonl", ".csv")
NEEDED = ("image", "question", "answers")
EXAMPLE = '{"image": "1.jpg", "question": "What does the sign say?", "answers": ["stop"]}'
LIST_EXAMPLE = 'stop|halt, or ["stop", "halt"] as JSON'
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}
TEACHER: Truth = "teacher"
SILVER_NOTE = (
    "agreement with the teacher, not accuracy: it shows whether one model is closer to the teacher than another, and "
    "cannot show what the teacher gets wrong itself"
)
NO_QUESTION, NO_ANSWER = "no question", "empty answer"


def read_questions(path: Path, limit: int | None = None) -> QuestionSet:
    """The first `limit` questions of a file, whether or not their images exist.

    A row without a question, or with an empty answer, for which silence would be right, is left out and counted.
    """
    samples, numbers, dropped = list[Sample](), list[int](), Counter[str]()
    lines_of, by_teacher = dict[str, int](), False
    for number, (line, row) in enumerate(_rows(path)):
        by_teacher |= row.get("truth") == TEACHER
        sample = _sample(row, line, f"{path}:{line}")
        if isinstance(sample, str):
            dropped[sample] += 1
            continue
        if sample.id in lines_of:
            first = lines_of[sample.id]
            raise MpaError(f"{path}:{line}: id '{sample.id}' is also that of line {first}: give each question its own")
        lines_of[sample.id] = line
        samples.append(sample)
        numbers.append(number)
    if not samples:
        why = "".join(f", {reason} in {n} rows" for reason, n in dropped.items())
        raise MpaError(f"{path} holds no question{why}: write one a line, as in {EXAMPLE}")
    found = QuestionSet(path.name, path.parent, tuple(samples[:limit]), tuple(numbers[:limit]), dict(dropped))
    if not by_teacher:
        return found
    run = path.parent.parent
    folder = images_of_run(run) if (run / RUN_FILE).is_file() else path.parent
    return replace(found, name="silver set", folder=folder, note=SILVER_NOTE, truth=TEACHER)


def read_own(path: Path, limit: int | None = None) -> QuestionSet:
    """The first `limit` questions of a file whose images exist; the others are left out and counted.

    Raises MpaError where no image exists.
    """
    found = read_questions(path)
    numbered = list(zip(found.numbers, found.samples, strict=True))
    kept = [(i, sample) for i, sample in numbered if os.path.isfile(found.folder / sample.image)]
    if not kept:
        raise MpaError(f"{path}: no image exists (first: '{found.samples[0].image}'); give paths relative to the file")
    missing = {MISSING: len(numbered) - len(kept)} if len(kept) < len(numbered) else {}
    return replace(
        found,
        samples=tuple(sample for _, sample in kept[:limit]),
        numbers=tuple(i for i, _ in kept[:limit]),
        dropped=missing | found.dropped,
    )


def _sample(row: dict[str, Any], line: int, where: str) -> Sample | str:
    """The question of a row, or why it is left out; MpaError where the row is not as it must be."""
    missing = [name for name in NEEDED if name not in row]
    if missing:
        raise MpaError(f"{where}: no {' or '.join(missing)}: write the row as in {EXAMPLE}")
    image, question = (text_of(row[name], name, where, EXAMPLE) for name in ("image", "question"))
    # a table knows no difference between a number and its text, nor between nothing and an empty text
    names = ("id", "kind", "group")
    optional = {name: str(row[name]) if type(row.get(name)) is int else row.get(name) for name in names}
    named = {name: text_of(v, name, where, EXAMPLE) for name, v in optional.items() if v not in (None, "")}
    answers = answers_of(row["answers"], where, EXAMPLE)
    if bad := no_character(image, question, *named.values(), *answers):
        raise MpaError(f"{where}: \\u{ord(bad):04x} is no character: remove it")
    if not all(answer.strip() for answer in answers or ("",)):
        return NO_ANSWER
    if not question.strip():
        return NO_QUESTION
    return Sample(image=image, question=question, answers=answers, **{"id": str(line)} | named)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and row of a file of either kind."""
    if path.suffix.lower() not in SUFFIXES:
        raise MpaError(f"'{path}' is no {' or '.join(SUFFIXES)} file: save the questions as one")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MpaError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error
    return _table(data, path) if path.suffix.lower() == ".csv" else json_lines(data, str(path), EXAMPLE)


def _table(data: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a comma-separated table, each with the line on which it begins; empty rows are skipped."""
    text = decode(data, str(path))
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader, header, next_line = csv.reader(StringIO(text, newline=""), strict=True), list[str](), 1
    try:
        for cells in reader:
            line, next_line = next_line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(cells, path)
                continue
            row, where = dict(zip(header, cells, strict=False)), f"{path}:{line}"
            if len(cells) != len(header) or row.get(""):
                named = sum(map(bool, header))
                raise MpaError(f"{where}: {len(cells)} cells for {named} columns: write a cell with a comma in quotes")
            yield line, row | {"answers": split_answers(row["answers"], where)}
    except csv.Error as error:
        raise MpaError(f"{path}:{next_line}: not a table with commas ({error}): save it as CSV UTF-8") from error
    if not header:
        _header([], path)


def _header(cells: list[str], path: Path) -> list[str]:
    """The names of the columns; MpaError where one that is needed is missing, or one stands there twice."""
    names, begin = [cell.strip() for cell in cells], f"begin with {','.join(NEEDED)}"
    for mark, word in DELIMITERS.items():
        if set(NEEDED) <= {name.strip() for name in ",".join(cells).split(mark)}:
            raise MpaError(f"{path}:1: the columns are separated by {word} ({mark!r}): save the table with commas")
    if missing := [name for name in NEEDED if name not in names]:
        raise MpaError(f"{path}:1: the first line names no column {' or '.join(missing)}: {begin}")
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise MpaError(f"{path}:1: two columns are named {twice[0]}: rename or remove one")
    return names


def split_answers(cell: str, where: str) -> list[Any]:
    """Accepted answers of one cell: between bars, or a JSON list where an answer has a bar itself; or one JSON object.

    >>> split_answers("stop| halt |", "x:2"), split_answers('["a|b", "c"]', "x:2"), split_answers(" ", "x:2")
    (['stop', 'halt'], ['a|b', 'c'], [])
    """
    text = cell.strip()
    if is_object(text):
        return [text]
    if text.startswith("[") and text.endswith("]"):
        try:
            return list(json.loads(text))
        except (ValueError, RecursionError):
            raise MpaError(f"{where}: answers is a list, but not a JSON list: write {LIST_EXAMPLE}") from None
    answers_of([text], where, LIST_EXAMPLE)
    return [part.strip() for part in cell.split("|") if part.strip()]
