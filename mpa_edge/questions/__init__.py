"""Questions with known answers, from a benchmark's own files, parquet, CSV or JSON lines.

Files are not trusted: a row without question, answer or image is left out and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpa_edge.types import Sample, Truth

MISSING = "missing image"


@dataclass(frozen=True)
class QuestionSet:
    """What a model can be asked, and what had to be left out."""

    name: str
    """Shown to users: `chartqa test`, or the name of a file."""
    folder: Path
    """Image paths are relative to it."""
    samples: tuple[Sample, ...]
    """In the order of the files."""
    numbers: tuple[int, ...]
    """Position of each sample among all rows of the split, from 0: it stays the same whatever is left out."""
    dropped: dict[str, int]
    """Rows that were left out: reason -> how many."""
    note: str = ""
    """What a reader of the result must know about these questions."""
    mean_of_kinds: bool = False
    """Whether the overall score is the mean of the kinds' scores, each kind having the same weight."""
    truth: Truth = "labels"
    """What the answers are."""


def measure_of(truth: Truth) -> str:
    """What a share of right answers is called.

    >>> measure_of("labels"), measure_of("teacher"), measure_of("reviewed")
    ('accuracy', 'agreement with the teacher', 'true accuracy')
    """
    return {"labels": "accuracy", "reviewed": "true accuracy", "teacher": "agreement with the teacher"}[truth]


def left_out(dropped: dict[str, int]) -> str:
    """What was left out, in words; empty where nothing was.

    >>> left_out({"missing image": 2, "no answers": 1}), left_out({})
    ('left out: missing image (2), no answers (1)', '')
    """
    listed = ", ".join(f"{reason} ({n})" for reason, n in dropped.items())
    return f"left out: {listed}" if listed else ""


def share(kinds: Sequence[str | None], limit: int | None) -> list[int]:
    """Positions of the first `limit` items; with several kinds, as evenly many of each as possible.

    >>> share([None] * 5, 2), share(["human"] * 3 + ["augmented"] * 3, 3), share(["a", "b", "b"], None)
    ([0, 1], [0, 1, 3], [0, 1, 2])
    """
    if limit is None or limit >= len(kinds):
        return list(range(len(kinds)))
    by_kind: dict[str | None, list[int]] = {}
    for position, kind in enumerate(kinds):
        by_kind.setdefault(kind, []).append(position)
    # the first of each kind, then the second of each, and so on
    in_turn = sorted((rank, at, i) for at, queue in enumerate(by_kind.values()) for rank, i in enumerate(queue))
    return sorted(i for _, _, i in in_turn[:limit])
