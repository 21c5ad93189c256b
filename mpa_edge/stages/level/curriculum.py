"""Easy samples first: the order of the lessons, by the loss of the student before it has learned anything.

Source of the idea: Bengio et al. 2009, "Curriculum learning"; the measure of difficulty is Hacohen and Weinshall 2019,
arXiv 1904.03626, section 2.1, with the student itself as the scoring function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mpa_edge.runs.files import read_json, write_json
from mpa_edge.stages.level.answer_logits import answer_logits, by_row, in_batches
from mpa_edge.types import ParityRecord

LOSSES_BEFORE = "student-losses.json"
DIGITS = 4


def easy_first(rows: Sequence[ParityRecord], losses: Mapping[str, float]) -> list[ParityRecord]:
    """Rows in the order of their loss; equal ones by their id, so that the order is the same every time."""
    return sorted(rows, key=lambda row: (losses[row.id], row.id))


def losses_before(
    path: Path, rows: Sequence[ParityRecord], measure: Callable[[], Mapping[str, float]]
) -> Mapping[str, float]:
    """The student's loss on each row: read, where a run is taken up again, else measured and written."""
    stored = read_json(path)
    if isinstance(stored, dict) and {row.id for row in rows} <= stored.keys():
        return stored
    measured = {name: round(loss, DIGITS) for name, loss in measure().items()}
    write_json(path, measured)
    return measured


@torch.no_grad()
def row_losses(
    model: Any,
    made: Sequence[Mapping[str, Any]],
    collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]],
    at_once: int,
) -> list[float]:
    """Mean negative log-likelihood of the tokens of each answer, in nats."""

    def work(rows: Sequence[Mapping[str, Any]]) -> list[float]:
        batch = {key: value.to(model.device) for key, value in collate(rows).items()}
        logits, labels = answer_logits(model, batch)
        nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        return [float(one.mean()) for one in by_row(nll, batch["labels"])]

    training = model.training
    model.eval()
    losses = in_batches(made, at_once, work)
    model.train(training)
    return losses
