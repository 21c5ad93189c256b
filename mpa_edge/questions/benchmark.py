"""What a benchmark is to its reader: its splits, their files, and how a row looks. One object in a task's own file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mpa_edge.questions.row import Row

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
    """How parquet files of a hub call it: `validation` of `data/validation-00000-of-00003.parquet`."""
    note: str = ""
    """What a reader of the result must know of the split."""


@dataclass(frozen=True)
class Benchmark:
    """How to read a benchmark's published files."""

    name: str
    """The task's name."""
    splits: tuple[Split, ...]
    """In order: without `--split`, the first one whose files are there is asked."""
    rows: Callable[[Split, Documents], Iterator[Row]]
    """Rows of the official files."""
    image_folders: tuple[str, ...]
    """Where `Row.image` may lie, below the data folder or beside the annotation file."""
    source: str
    """Where people get it."""
    question_columns: tuple[str, ...] = ("question", "query")
    """Parquet columns that may hold the question; the first that is there counts."""
    answer_columns: tuple[str, ...] = ("answers", "answer", "label")
    """The same for the answers."""
    kind_columns: tuple[str, ...] = ()
    """The same for the kind."""
    kinds: Mapping[Any, str] = field(default_factory=dict)
    """Value of the kind's column -> kind."""
    defaults: int = 1
    """How many of the splits may be taken without being named."""
    mean_of_kinds: bool = False
    """Whether the score of the whole is the mean of its kinds."""
