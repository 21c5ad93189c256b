"""The teacher's whole opinion instead of its one word: its token probabilities, learned beside the answer.

The Jensen-Shannon divergence between the two distributions at each token of the answer, as in Agarwal et al. 2024,
"On-policy distillation of language models", arXiv 2306.13649, section 3, with beta 1/2. The teacher's likeliest tokens
are kept and all others are one bucket, so that it need not be in memory while the student learns: what is measured is
never above the divergence over the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel

from mpa_edge.errors import MpaError
from mpa_edge.progress import progress
from mpa_edge.runs.files import make_folder
from mpa_edge.runs.parquet import part_path, read_rows, write_rows
from mpa_edge.stages.level.answer_logits import IGNORE, answer_logits, by_row, in_batches
from mpa_edge.stages.level.ddp import place, wait_for

if TYPE_CHECKING:
    from torch import Tensor

SOFT = "soft"
TOP = 64
CHUNK = 256
LEAST = 1.0e-7  # of the bucket of all other tokens: fp32 knows no smaller rest of 1
Rows = Sequence[Mapping[str, Any]]
Collate = Callable[[Rows], dict[str, Any]]


class SoftLabel(BaseModel):
    """What the teacher thinks of each token of one answer."""

    id: str
    """Id of the pseudo annotation."""
    tokens: tuple[int, ...]
    """Tokens of the answer with its end token, as the teacher's tokenizer makes them."""
    top: int
    """How many tokens are kept for each of those."""
    ids: tuple[int, ...]
    """The likeliest ones: `top` for the first token of the answer, then for the next."""
    logprobs: tuple[float, ...]
    """Their natural log-probabilities."""


def require_same_words(teacher: Any, student: Any) -> None:
    """MpaError where the two processors do not number the same tokens in the same way."""
    words, others = teacher.tokenizer.get_vocab(), student.tokenizer.get_vocab()
    if words != others:
        differ = sum(others.get(word) != number for word, number in words.items())
        raise MpaError(
            f"teacher and student have different tokenizers ({differ} of {len(words)} tokens differ), so token "
            f"probabilities cannot be compared: use level.distill=0"
        )


def soft_labels(
    folder: Path, made: Rows, at_once: int, load: Callable[[], tuple[Any, Collate, int]], tick: Callable[[], object]
) -> dict[str, SoftLabel]:
    """The teacher's opinion of each row, by id; in parts, so that a kill costs one of them.

    `load` gives the model, its collator, and the number of tokens of its tokenizer; it is called only where parts are
    missing. Of several processes each makes a share of the parts and waits for those of the others.
    """
    make_folder(folder)
    starts, (mine, of) = range(0, len(made), CHUNK), place()
    todo = [i for i in range(len(starts)) if i % of == mine and not part_path(folder, i).is_file()]
    if todo:
        model, collate, n_words = load()
        with progress("level (teacher)", len(starts), len(starts) - len(todo)) as advance:
            for i in todo:
                part = made[starts[i] : starts[i] + CHUNK]
                labels = in_batches(part, at_once, lambda rows: opinions(model, rows, collate, n_words))
                write_rows(part_path(folder, i), labels, SoftLabel)
                tick()
                advance(1)
    wait_for([part_path(folder, i) for i in range(len(starts))])
    return {label.id: label for i in range(len(starts)) for label in read_rows(part_path(folder, i), SoftLabel)}


@torch.no_grad()
def opinions(model: Any, rows: Rows, collate: Collate, n_words: int) -> list[SoftLabel]:
    """The likeliest tokens at each token of each answer, of those that the tokenizer knows."""
    batch = {key: value.to(model.device) for key, value in collate(rows).items()}
    logits, tokens = answer_logits(model, batch)
    top = logits.log_softmax(-1)[:, :n_words].topk(min(TOP, n_words, logits.shape[-1]))
    parts = (by_row(values.cpu(), batch["labels"].cpu()) for values in (tokens, top.indices, top.values))
    return [
        SoftLabel(
            id=row["id"],
            tokens=tuple(said.tolist()),
            top=ids.shape[1],
            ids=tuple(ids.flatten().tolist()),
            logprobs=tuple(logprobs.flatten().tolist()),
        )
        for row, said, ids, logprobs in zip(rows, *parts, strict=True)
    ]


def stacked(rows: Rows, labels: Tensor, known: Mapping[str, SoftLabel]) -> dict[str, Tensor]:
    """What the loss needs of a batch: (answer tokens, top) `ids` and `logprobs`, and which of the tokens have them.

    Empty where no row has a soft label, as on the held-out slice. A row that the teacher's template writes in other
    tokens than the student's has none.
    """
    said = [row[row != IGNORE].tolist() for row in labels]
    found = [known.get(str(row["id"])) for row in rows]
    fits = [label if label and list(label.tokens) == own else None for label, own in zip(found, said, strict=True)]
    if not any(fits):
        return {}
    top = next(label.top for label in fits if label)
    tables = [_tables(label, len(own), top) for label, own in zip(fits, said, strict=True)]
    counts = torch.tensor([len(own) for own in said])
    return {
        "ids": torch.cat([ids for ids, _ in tables]),
        "logprobs": torch.cat([logprobs for _, logprobs in tables]),
        "known": torch.tensor([label is not None for label in fits]).repeat_interleave(counts),
    }


def _tables(label: SoftLabel | None, n: int, top: int) -> tuple[Tensor, Tensor]:
    """(n, top) ids and log-probabilities of an answer of n tokens; of no use where there is no label."""
    if label is None:
        return torch.zeros((n, top), dtype=torch.long), torch.full((n, top), -math.inf)
    return torch.tensor(label.ids).view(n, top), torch.tensor(label.logprobs).view(n, top)


def divergence(logits: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats, at most ln 2: (tokens, vocabulary), (tokens, top), (tokens, top) -> (tokens,).

    Over the teacher's `ids` and one bucket of all other tokens.
    """
    student = with_rest(logits.log_softmax(-1).gather(1, ids))
    teacher = with_rest(logprobs.to(student))
    middle = torch.logaddexp(student, teacher) - math.log(2)
    apart = teacher.exp() * (teacher - middle) + student.exp() * (student - middle)
    return apart.sum(-1) / 2


def with_rest(logprobs: Tensor) -> Tensor:
    """Log-probabilities of some tokens -> the same with that of all others behind them."""
    rest = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp_min(LEAST).log()
    return torch.cat([logprobs, rest], -1)


def distilling(weight: float) -> type:
    """TRL's trainer with the divergence beside the negative log-likelihood; rows without soft labels learn as ever."""
    from trl import SFTTrainer

    class Distilling(SFTTrainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            soft, n_processes = inputs.pop(SOFT, None), place()[1]
            if soft is None and n_processes == 1:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            logits, labels = answer_logits(model, inputs)
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            if soft is not None:
                known = soft["known"]
                apart = divergence(logits[known], soft["ids"][known], soft["logprobs"][known]).sum()
                loss = loss + weight * apart
            # gradients are averaged over the processes, the tokens are those of all of them
            return loss * n_processes / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return Distilling
