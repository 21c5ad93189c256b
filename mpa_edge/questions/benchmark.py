"""How a benchmark's published files are read: its splits, their files, and its rows. Each task's file has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mpa_edge.types import Drop

Documents = Mapping[str, Any]
"""File name of the split -> its JSON."""


@dataclass(frozen=True)
class Split:
    """One part of a benchmark that is asked as a whole."""

    name: str
    """What `--split` takes."""
    files: tuple[str, ...] = ()
    """Official annotation files, all of them needed; looked for in the folder and two levels below it."""
    parquet: tuple[str, ...] = ()
    """Its names in a hub's parquet files: `validation` in `data/validation-00000-of-00003.parquet`."""
    note: str = ""
    """What a reader of the result must know about the split."""


@dataclass(frozen=True)
class Row:
    """One row of a published file, not checked yet."""

    question: Any
    """As it stands in the file."""
    answers: Any
    """A text, a number, a list of those, or a list of {"answer": text}."""
    image: str = ""
    """Path of the image, below one of the benchmark's image folders."""
    id: Any = None
    """The file's own id of the question; None where it has none."""
    kind: str | None = None
    """Question kind, where the benchmark has one."""


@dataclass(frozen=True)
class Benchmark:
    """How to read a benchmark's published files."""

    name: str
    """The task's name."""
    splits: tuple[Split, ...]
    """In order: without `--split`, the first one whose files exist is asked."""
    rows: Callable[[Split, Documents], Iterator[Row]]
    """Rows of the official files."""
    image_folders: tuple[str, ...]
    """Where `Row.image` may be, below the data folder or beside the annotation file."""
    source: str
    """Where to get it."""
    question_columns: tuple[str, ...] = ("question", "query")
    """Parquet columns that may hold the question; the first that exists is read."""
    answer_columns: tuple[str, ...] = ("answers", "answer", "label")
    """The same for the answers."""
    kind_columns: tuple[str, ...] = ()
    """The same for the kind."""
    kinds: Mapping[Any, str] = field(default_factory=dict)
    """Value of the kind's column -> kind."""
    defaults: int = 1
    """How many of the splits, from the first, may be taken without `--split`."""
    mean_of_kinds: bool = False
    """Whether the overall score is the mean of the kinds' scores."""


def text_of(value: Any) -> str:
    """A value as text: numbers as JSON writes them, None as nothing.

    >>> text_of(" What?\\n"), text_of(14), text_of(0.57), text_of(None), text_of(True)
    ('What?', '14', '0.57', '', 'True')
    """
    return "" if value is None else str(value).strip()


def answers_of(value: Any) -> tuple[str, ...] | Drop:
    """Every accepted answer, in order and with repetitions (VQA accuracy counts them), or why there is none.

    Outer blanks stay: the metrics have their own rules for them.

    >>> answers_of("14"), answers_of(["a", "a"]), answers_of([{"answer": "race", "raw_answer": "racing"}])
    (('14',), ('a', 'a'), ('race',))
    >>> answers_of(14), answers_of([""] * 10), answers_of(None)
    (('14',), Drop(reason='no answers', detail=''), Drop(reason='no answers', detail=''))
    """
    listed = value if isinstance(value, list | tuple) else [value]
    plain = [item.get("answer") if isinstance(item, Mapping) else item for item in listed]
    if not all(isinstance(item, str | int | float) for item in plain) or not any(text_of(item) for item in plain):
        return Drop("no answers")
    return tuple(item if isinstance(item, str) else text_of(item) for item in plain)


def unique(ids: list[str]) -> list[str]:
    """The ids without repetition: a repeated one gets the number of its occurrence.

    >>> unique(["7", "8", "7", "7#2", "7"])
    ['7', '8', '7#2', '7#2#2', '7#3']
    """
    seen: dict[str, int] = {}
    taken: set[str] = set()
    result = []
    for name in ids:
        new = name
        while new in taken:
            seen[name] = seen.get(name, 1) + 1
            new = f"{name}#{seen[name]}"
        taken.add(new)
        result.append(new)
    return result
