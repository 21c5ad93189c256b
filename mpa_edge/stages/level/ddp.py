"""Training in several processes: `accelerate launch [--num_processes N ...] -m mpa_edge level RUN`.

Every process runs the same command, and the first one (rank 0) does all that must happen once: it holds the lock of the
run folder, writes to it, and prints. It broadcasts each training to the others, which take part and end with it.
Gradients are averaged by PyTorch's DistributedDataParallel, as Hugging Face's Trainer sets it up.

A step sees the samples of one process in any number of processes, and its loss is the mean over the tokens of all of
them. Not the same as in one process: when `level.batch_size` does not divide the training rows, the last step of a pass
repeats some of them; the held-out loss is a mean over smaller batches; and floating-point sums differ in their last
digits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from mpa_edge.errors import MpaError

if TYPE_CHECKING:
    from mpa_edge.config.recipe import LevelConfig

Message = TypeVar("Message")
# accelerate's variables for launchers that split one model over several GPUs
SHARDING = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")


def rank() -> int:
    """Number of this process among those of `accelerate launch`; 0 for the first one, or where there is only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that `accelerate launch` started, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def require_launchable(stages: Sequence[str], config: LevelConfig) -> None:
    """Raise MpaError where the processes of this launch cannot share the work of these stages."""
    n = world_size()
    if n == 1:
        return
    if tuple(stages) != ("level",):
        raise MpaError(
            f"only level trains in several processes, and {n} were launched: run {', '.join(stages)} without "
            f"accelerate launch, and accelerate launch -m mpa_edge level RUN"
        )
    if any(os.environ.get(name, "").lower() == "true" for name in SHARDING):
        raise MpaError("level keeps a whole student on each GPU: launch it without DeepSpeed, FSDP and Megatron-LM")
    if config.quantize:
        raise MpaError("level.quantize is for a single GPU: launch one process, or use --set level.quantize=null")
    if config.batch_size % n:
        fewer = max(count for count in range(1, min(n, config.batch_size) + 1) if config.batch_size % count == 0)
        raise MpaError(
            f"level.batch_size {config.batch_size} cannot be split evenly over {n} processes: "
            f"use --num_processes {fewer}, or --set level.batch_size={-(-config.batch_size // n) * n}"
        )


def broadcast(message: Message | None) -> Message | None:
    """What the first process passes, returned in all of them; the others pass None and wait for it."""
    if world_size() == 1:
        return message
    import torch

    if not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.distributed.init_process_group()  # Gloo for tensors on a CPU, NCCL for those on a GPU
    box = [message]
    torch.distributed.broadcast_object_list(box)
    return box[0]


@contextmanager
def process_errors() -> Iterator[None]:
    """Turn what PyTorch raises in one of several processes, mostly when another one has ended, into one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if world_size() == 1:
            raise
        from mpa_edge.vlm.transformers.checkpoint import is_out_of_memory

        if is_out_of_memory(error):
            raise MpaError(
                "out of memory in a training process: use --set level.gradient_checkpointing=true, or more processes"
            ) from error
        why = " ".join(str(error).split())[:200]
        raise MpaError(
            f"training process {rank()} stopped, usually because another one did ({why}): fix the first error that was "
            f"reported and rerun; training resumes from the last checkpoint"
        ) from error
