"""Which rows the student is trained on: the gap (or another subset for an ablation), replay, and a held-out slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpa_edge.config.recipe import LevelConfig
from mpa_edge.stages.run import stable_seed
from mpa_edge.types import ParityRecord

VERDICTS = ("gap", "parity", "unverified")
SUBSETS = {"gap": ("gap",), "verified": ("gap", "parity"), "all": VERDICTS, "random": VERDICTS}


@dataclass(frozen=True)
class Selection:
    """Training rows, and held-out rows of the pseudo-labelled gap for early stopping."""

    train: tuple[ParityRecord, ...]
    holdout: tuple[ParityRecord, ...]
    replayed: int
    """How many of the training rows are parity rows, added against forgetting."""


def select(
    rows: Sequence[ParityRecord], config: LevelConfig, seed: int, labelled: frozenset[str] = frozenset()
) -> Selection:
    """Take the rows of `config.subset`, hold out whole images but none of the `labelled` ids, and add replay.

    The result depends on the rows and the seed, not on the order of the rows.
    """
    chosen = [row for row in rows if row.verdict in SUBSETS[config.subset]]
    if config.subset == "random":
        n_gap = sum(row.verdict == "gap" for row in rows)
        chosen = _shuffled(chosen, seed, "subset")[:n_gap]
    free = (row for row in chosen if row.image_id not in labelled)
    holdout = [row for row in free if _uniform(seed, "holdout", row.image_id) < config.holdout]
    held_out_images = {row.image_id for row in holdout}
    train = [row for row in chosen if row.image_id not in held_out_images]
    replay: list[ParityRecord] = []
    if config.subset == "gap":
        parity = [row for row in rows if row.verdict == "parity" and row.image_id not in held_out_images]
        replay = _shuffled(parity, seed, "replay")[: round(config.replay * len(train))]
    return Selection(tuple(train + replay), tuple(holdout), len(replay))


def _uniform(seed: int, *parts: object) -> float:
    """A number in [0, 1) that depends only on its arguments."""
    return stable_seed(seed, *parts) / 2**63


def _shuffled(rows: Sequence[ParityRecord], seed: int, purpose: str) -> list[ParityRecord]:
    return sorted(rows, key=lambda row: (_uniform(seed, purpose, row.id), row.id))
