"""Questions with known answers, read from where people have them: a benchmark's own files, parquet, CSV, JSON lines.

What a file says of itself is not trusted: a row without question, answer or picture is left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpa_edge.types import Drop, Sample

MISSING = "missing image"


@dataclass(frozen=True)
class QuestionSet:
    """What a model can be asked, and what had to be left out."""

    name: str
    """For people: `chartqa test`, or the name of a file."""
    folder: Path
    """Image paths are relative to it."""
    samples: tuple[Sample, ...]
    """In the order of the files."""
    numbers: tuple[int, ...]
    """Position of each sample among all rows of the split, from 0: it stays the same whatever is left out."""
    dropped: dict[str, int]
    """Rows that were left out: reason -> how many."""
    note: str = ""
    """What a reader of the result must know of these questions."""
    mean_of_kinds: bool = False
    """Whether the score of the whole is the mean of its kinds, each counting the same."""


def left_out(dropped: dict[str, int]) -> str:
    """What was left out, in words; empty where nothing was.

    >>> left_out({"missing image": 2, "no answers": 1}), left_out({})
    ('left out: missing image (2), no answers (1)', '')
    """
    listed = ", ".join(f"{reason} ({n})" for reason, n in dropped.items())
    return f"left out: {listed}" if listed else ""


def count(drops: Iterable[Drop]) -> dict[str, int]:
    """Drops by reason, most frequent first."""
    return dict(Counter(drop.reason for drop in drops).most_common())


def share(kinds: Sequence[str | None], limit: int | None) -> list[int]:
    """Positions of the first `limit` items; with several kinds each gets its part, the first ones one more.

    >>> share([None] * 5, 2), share(["human"] * 3 + ["augmented"] * 3, 3), share(["a", "b", "b"], None)
    ([0, 1], [0, 1, 3], [0, 1, 2])
    """
    if limit is None or limit >= len(kinds):
        return list(range(len(kinds)))
    by_kind: dict[str | None, list[int]] = {}
    for position, kind in enumerate(kinds):
        by_kind.setdefault(kind, []).append(position)
    taken: list[int] = []
    queues = list(by_kind.values())
    depth = 0
    while len(taken) < limit:
        taken += [queue[depth] for queue in queues if depth < len(queue)][: limit - len(taken)]
        depth += 1
    return sorted(taken)
