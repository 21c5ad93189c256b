"""Training in several processes, each with a share of every step: PyTorch's DistributedDataParallel by accelerate.

What is equal to one process: the samples of each step and their order, the loss of a step (a mean over the tokens of
all processes), the held-out loss, and with them the step at which training stops and the one that is kept; the order of
a curriculum, the teacher's token probabilities. A last batch that does not go round is filled with rows that teach
nothing, not with rows twice.
What is not: sums are taken in another order, batches are padded to another length. So numbers differ in their last
digits, the adapter by 1e-6 after a few steps, and by more the longer and the faster it learns: two held-out losses that
are equal but for such digits may be ordered in another way. With dropout, each process draws its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler

from mpa_edge.stages.level.answer_logits import IGNORE, answer_logits

POLL_S = 0.2
Rows = Sequence[Mapping[str, Any]]


def place() -> tuple[int, int]:
    """(number of this process, number of all); (0, 1) outside accelerate's processes."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def is_first() -> bool:
    """Whether this process writes what only one may write."""
    return place()[0] == 0


def meet() -> None:
    """Wait for the others; nothing where there are none."""
    if place()[1] > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def agreed(value: Any) -> Any:
    """What the first process says, in all of them: a shared folder may look older to another machine."""
    if place()[1] == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def wait_for(paths: Sequence[Path]) -> None:
    """Wait for files that other processes write; where one of those dies, this one is ended with it."""
    while not all(path.is_file() for path in paths):
        time.sleep(POLL_S)


def blank(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that fills a batch and teaches nothing: no answer, so no token that the loss counts."""
    return {**row, "id": "", "completion": ""}


class EvenOrder(Sampler[int]):
    """The order in which one process sees n rows, filled with number n (a blank row) until all processes are served.

    `shuffled` says whether each pass has an order of its own, `epoch` which pass begins. Seeds are those of
    SeedableRandomSampler of accelerate, which one process uses.
    """

    def __init__(self, n: int, at_once: int, shuffled: bool, seed: int, epoch: Callable[[], int]) -> None:
        self.n, self.shuffled, self.seed, self.epoch = n, shuffled, seed, epoch
        self.total = -(-n // at_once) * at_once

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.n))
        if self.shuffled:
            generator = torch.Generator().manual_seed(self.seed + self.epoch())
            order = torch.randperm(self.n, generator=generator).tolist()
        yield from order
        yield from [self.n] * (self.total - self.n)


def in_step(base: type) -> type:
    """A trainer that shares its work evenly; `base` is TRL's, or one made from it.

    Its training set ends with one blank row, which is not part of a pass.
    """

    class InStep(base):
        def _get_train_sampler(self, train_dataset: Any = None) -> EvenOrder:
            args, n = self.args, len(self.train_dataset) - 1
            a_step = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
            # the step counts also where training goes on in the middle: accelerate's samplers lose their pass there
            return EvenOrder(
                n,
                args.per_device_train_batch_size * args.world_size,
                args.train_sampling_strategy == "random",
                args.data_seed,
                lambda: self.state.global_step // -(-n // a_step),
            )

        def evaluation_loop(
            self,
            dataloader: Any,
            description: str,
            prediction_loss_only: bool | None = None,
            ignore_keys: Any = None,
            metric_key_prefix: str = "eval",
        ) -> Any:
            """Each process looks at its share; all of them learn the mean."""
            from transformers.trainer_utils import EvalLoopOutput

            args, (mine, of) = self.args, place()
            rows, at_once = list(dataloader.dataset), args.per_device_eval_batch_size
            a_step = args.per_device_train_batch_size * of * args.gradient_accumulation_steps
            groups = [rows[i : i + a_step] for i in range(0, len(rows), a_step)][mine::of]
            self.model.eval()
            with torch.no_grad(), self.accelerator.autocast():
                sums = [len(group) * self._held_out_loss(group, at_once) for group in groups]
            total = torch.tensor(float(sum(sums)), dtype=torch.float64, device=args.device)
            loss = float(self.accelerator.reduce(total)) / len(rows)
            return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": loss}, len(rows))

        def _held_out_loss(self, rows: Rows, at_once: int) -> float:
            """Mean over the answer tokens of these rows, in nats, as one process has it for a batch of them."""
            nll, n_tokens = 0.0, 0
            for i in range(0, len(rows), at_once):
                batch = self._prepare_inputs(self.data_collator(rows[i : i + at_once]))
                logits, labels = answer_logits(self.model, batch)
                nll += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
                n_tokens += int((batch["labels"] != IGNORE).sum())
            return nll / max(1, n_tokens)

    return InStep
