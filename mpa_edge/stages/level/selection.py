"""What the student is trained on: the gap, or another subset for an ablation, with replay and a held-out slice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from mpa_edge.config.recipe import LevelConfig
from mpa_edge.metrics.lenient import normalized
from mpa_edge.stages.run import stable_seed
from mpa_edge.types import ParityRecord


@dataclass(frozen=True)
class Selection:
    """Training rows, and held-out rows of the pseudo-labelled gap for early stopping."""

    train: tuple[ParityRecord, ...]
    holdout: tuple[ParityRecord, ...]
    replayed: int
    """How many of the training rows are parity rows against forgetting."""
    left_out: int = 0
    """How many rows were too many of their kind, answer or question."""


def select(
    rows: Sequence[ParityRecord],
    config: LevelConfig,
    seed: int,
    kind_of: Callable[[ParityRecord], Hashable] = lambda _: 0,
) -> Selection:
    """Choose by `level.subset`, hold out whole images, cap what is too frequent, add replay.

    The same rows and seed give the same choice. `kind_of` says which kind of question a row is, for balance_kinds.
    """
    chosen = [row for row in rows if _in_subset(row, config.subset)]
    if config.subset == "random":
        n_gap = sum(row.verdict == "gap" for row in rows)
        chosen = _shuffled(chosen, seed, "subset")[:n_gap]
    holdout = [row for row in chosen if _unit(seed, "holdout", row.image_id) < config.holdout]
    kept_out = {row.image_id for row in holdout}
    free = [row for row in chosen if row.image_id not in kept_out]
    train = thinned(free, config, seed, kind_of)
    parity = [row for row in rows if row.verdict == "parity" and row.image_id not in kept_out]
    replay = _shuffled(parity, seed, "replay")[: round(config.replay * len(train))] if config.subset == "gap" else []
    return Selection(tuple(train + replay), tuple(holdout), len(replay), len(free) - len(train))


def thinned(
    rows: Sequence[ParityRecord], config: LevelConfig, seed: int, kind_of: Callable[[ParityRecord], Hashable]
) -> list[ParityRecord]:
    """Rows without what is above an even share of its kind, above answer_share, or above question_share."""
    kept = list(rows)
    if config.balance_kinds:
        kept = capped(kept, kind_of, -(-len(kept) // max(1, len({kind_of(row) for row in kept}))), seed)
    if config.answer_share < 1:
        kept = capped(kept, lambda row: normalized(row.answer), math.ceil(config.answer_share * len(kept)), seed)
    if config.question_share < 1:
        kept = capped(kept, lambda row: row.question.casefold(), math.ceil(config.question_share * len(kept)), seed)
    return kept


def capped(
    rows: Sequence[ParityRecord], key: Callable[[ParityRecord], Hashable], most: int, seed: int
) -> list[ParityRecord]:
    """At most `most` rows of each key, which ones by the seed; in the order in which they came."""
    seen: Counter[Hashable] = Counter()
    kept = set()
    for row in _shuffled(rows, seed, "cap"):
        seen[key(row)] += 1
        if seen[key(row)] <= most:
            kept.add(row.id)
    return [row for row in rows if row.id in kept]


def _in_subset(row: ParityRecord, subset: str) -> bool:
    """gap: the parity subset; verified: all that the teacher confirmed; all and random: every pseudo label."""
    return subset in ("all", "random") or row.verdict == "gap" or (subset == "verified" and row.verdict == "parity")


def _unit(seed: int, *parts: object) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    return stable_seed(seed, *parts) / 2**63


def _shuffled(rows: Sequence[ParityRecord], seed: int, purpose: str) -> list[ParityRecord]:
    return sorted(rows, key=lambda row: (_unit(seed, purpose, row.id), row.id))
