"""Which questions are worth a look: those where the models differ first, then some of each other outcome."""

from __future__ import annotations

from collections.abc import Sequence

from mpa_edge.bench.records import AnswerRow

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
    """Up to `n` rows: in turns one of each story, flips before what stayed the same; rows with a picture first.

    Deterministic: rows keep their order within a story. A benchmark calls it to know which pictures to keep.
    """
    groups: dict[str, list[AnswerRow]] = {name: [] for name in ORDER}
    for row in sorted(rows, key=lambda row: row.picture is None):
        groups[story(row)].append(row)
    chosen: list[AnswerRow] = []
    for name, most in ORDER.items():
        chosen += groups[name][:most]
    spare = (row for name, most in ORDER.items() for row in groups[name][most:])
    chosen = [*chosen, *spare][:n]
    return sorted(chosen, key=lambda row: list(ORDER).index(story(row)))
