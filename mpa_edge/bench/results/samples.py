"""Which questions are worth a look: those where the models differ first, then some of each other outcome."""

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


def outcome(row: AnswerRow) -> tuple[bool, bool, bool]:
    """Whether base, aligned and the artifact are right: a score of at least one half."""
    base, aligned, artifact = row.scores
    return base >= RIGHT, aligned >= RIGHT, artifact >= RIGHT


def story(row: AnswerRow) -> str:
    """What happened at a question, in a few words."""
    base, aligned, artifact = outcome(row)
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
    """Up to `n` rows: some of each story, flips before what stayed the same, in turn over the kinds of questions.

    Where rows have pictures, those are taken. Deterministic. A benchmark calls it to know which pictures to keep.
    """
    seen = [row for row in rows if row.picture]
    groups: dict[str, list[AnswerRow]] = {name: [] for name in ORDER}
    for row in in_turn(seen if len(seen) >= min(n, len(rows)) else [*seen, *(row for row in rows if not row.picture)]):
        groups[story(row)].append(row)
    first = [row for name, most in ORDER.items() for row in groups[name][:most]]
    spare = [row for name, most in ORDER.items() for row in groups[name][most:]]
    return sorted([*first, *spare][:n], key=lambda row: list(ORDER).index(story(row)))


def in_turn(rows: Sequence[AnswerRow]) -> list[AnswerRow]:
    """First one of each kind, then the second of each; with a picture before those without."""
    count: Counter[tuple[bool, str | None]] = Counter()
    keyed = []
    for row in rows:
        kind = (row.picture is None, row.kind)
        keyed.append((row.picture is None, count[kind], row))
        count[kind] += 1
    return [row for _, _, row in sorted(keyed, key=lambda one: one[:2])]
