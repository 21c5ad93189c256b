"""What the student is trained on: the gap, or another subset for an ablation, with replay and a held-out slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpa_edge.recipe import LevelConfig
from mpa_edge.stages.run import stable_seed
from mpa_edge.types import ParityRecord


@dataclass(frozen=True)
class Selection:
    """Training rows, and held-out rows of the pseudo-labelled gap for early stopping."""

    train: tuple[ParityRecord, ...]
    holdout: tuple[ParityRecord, ...]
    replayed: int
    """How many of the training rows are parity rows against forgetting."""


def select(rows: Sequence[ParityRecord], config: LevelConfig, seed: int) -> Selection:
    """Choose by `level.subset`, hold out whole images, add replay. The same rows and seed give the same choice."""
    chosen = [row for row in rows if _in_subset(row, config.subset)]
    if config.subset == "random":
        n_gap = sum(row.verdict == "gap" for row in rows)
        chosen = _shuffled(chosen, seed, "subset")[:n_gap]
    holdout = [row for row in chosen if _unit(seed, "holdout", row.image_id) < config.holdout]
    kept_out = {row.image_id for row in holdout}
    train = [row for row in chosen if row.image_id not in kept_out]
    parity = [row for row in rows if row.verdict == "parity" and row.image_id not in kept_out]
    replay = _shuffled(parity, seed, "replay")[: round(config.replay * len(train))] if config.subset == "gap" else []
    return Selection(tuple(train + replay), tuple(holdout), len(replay))


def _in_subset(row: ParityRecord, subset: str) -> bool:
    """gap: the parity subset; verified: all that the teacher confirmed; all and random: every pseudo label."""
    return subset in ("all", "random") or row.verdict == "gap" or (subset == "verified" and row.verdict == "parity")


def _unit(seed: int, *parts: object) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    return stable_seed(seed, *parts) / 2**63


def _shuffled(rows: Sequence[ParityRecord], seed: int, purpose: str) -> list[ParityRecord]:
    return sorted(rows, key=lambda row: (_unit(seed, purpose, row.id), row.id))
