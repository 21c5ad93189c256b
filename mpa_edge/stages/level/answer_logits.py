"""What a model thinks of answers that are given: its logits at the tokens of each answer."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from mpa_edge.errors import MpaError
from mpa_edge.vlm.transformers.model import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -100
Item = TypeVar("Item")
Made = TypeVar("Made")


def answer_logits(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(answer tokens, vocabulary) fp32 logits that predict the labelled tokens of a batch, and (answer tokens,) labels.

    Row after row. Logits are made from the first answer on only: over the tokens of a picture they would be gigabytes.
    Both are empty where no row has an answer.
    """
    labels = batch["labels"]
    n = max(1, int((labels != IGNORE).any(0).cumsum(0).sign().sum()))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs, use_cache=False, logits_to_keep=n + 1).logits[:, -(n + 1) : -1]
    learned = labels[:, -n:] != IGNORE
    return logits[learned].float(), labels[:, -n:][learned]


def in_batches(items: Sequence[Item], at_once: int, work: Callable[[Sequence[Item]], Sequence[Made]]) -> list[Made]:
    """What `work` makes of all items, `at_once` at a time; half as many whenever memory runs out."""
    made: list[Made] = []
    while len(made) < len(items):
        try:
            made += work(items[len(made) : len(made) + at_once])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if at_once == 1:
                raise MpaError(
                    "out of memory with one sample at a time: use a smaller student or a lower level.rank"
                ) from error
            at_once //= 2
            gc.collect()
    return made


def by_row(values: Tensor, labels: Tensor) -> list[Tensor]:
    """(answer tokens, ...) of a batch, taken apart into its rows; `labels` are those of the whole batch."""
    return list(values.split((labels != IGNORE).sum(1).tolist()))
