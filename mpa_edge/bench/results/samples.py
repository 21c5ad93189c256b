"""Which questions the report shows: those where the models differ first, then some of each other outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mpa_edge.bench.results.records import AnswerRow

SHOWN = 12
RIGHT = 0.5
# story -> how many of the twelve, where there are that many; most telling first
ORDER = {
    "lost on the device": 3,
    "gained": 3,
    "lost by alignment": 1,
    "right on the device only": 1,
    "wrong after alignment, right on the device": 1,
    "wrong in all three": 2,
    "right in all three": 1,
}


def story(row: AnswerRow) -> str:
    """What happened at a question, in a few words: an answer is right from a score of one half."""
    base, aligned, artifact = (score >= RIGHT for score in row.scores)
    if aligned and not artifact:
        return "lost on the device"
    if not base and artifact:
        return "gained" if aligned else "right on the device only"
    if base and not artifact:
        return "lost by alignment"
    if base and not aligned:
        return "wrong after alignment, right on the device"
    return "right in all three" if artifact else "wrong in all three"


def pick(rows: Sequence[AnswerRow], n: int = SHOWN) -> list[AnswerRow]:
    """Up to `n` rows: some of each story, changes before what stayed the same, in turn over the kinds of questions.

    Where rows have thumbnails, those are taken. Deterministic. A benchmark calls it to know which images to keep.
    """
    shown = [row for row in rows if row.thumbnail]
    # those with a thumbnail first, then one of each kind of question, then the second of each
    count: Counter[tuple[bool, str | None]] = Counter()
    turns = []
    for row in shown if len(shown) >= min(n, len(rows)) else rows:
        bare = row.thumbnail is None
        turns.append((bare, count[bare, row.kind], row))
        count[bare, row.kind] += 1
    groups: dict[str, list[AnswerRow]] = {name: [] for name in ORDER}
    for _, _, row in sorted(turns, key=lambda turn: turn[:2]):
        groups[story(row)].append(row)
    first = [row for name, most in ORDER.items() for row in groups[name][:most]]
    spare = [row for name, most in ORDER.items() for row in groups[name][most:]]
    return sorted([*first, *spare][:n], key=lambda row: list(ORDER).index(story(row)))
