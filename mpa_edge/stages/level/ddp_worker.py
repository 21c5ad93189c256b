"""One of several training processes: `python -m mpa_edge.stages.level.ddp_worker ORDER.json`, started by accelerate."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import MpaError
from mpa_edge.runs.isolation import die_with_parent
from mpa_edge.stages.level.launch import FAILED, LAUNCHER, OUTCOME, Failure, Order

if TYPE_CHECKING:
    from mpa_edge.stages.level.training import Outcome
    from mpa_edge.stages.run import Run


def main(path: Path) -> int:
    """Exit code of this process; what went wrong is written beside the order."""
    die_with_parent(int(os.environ[LAUNCHER]))
    order = Order.model_validate_json(path.read_bytes())
    rank = os.environ.get("RANK", "0")
    _hush(order.quiet, rank)
    try:
        work(order, path.parent)
    except Exception as error:
        from mpa_edge.runs.files import write_json

        write_json(path.with_name(FAILED.format(rank)), failure(error))
        return 1
    return 0


def _hush(quiet: bool, rank: str) -> None:
    """Only the first process speaks, and in the words of mpa-edge."""
    if rank != "0":
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)
    if quiet:
        import logging
        import warnings

        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)


def failure(error: Exception) -> Failure:
    """What the process that waits for us needs to know.

    >>> failure(MpaError("no: do that")).kind, failure(MemoryError()).kind, failure(KeyError("x")).message
    ('user', 'memory', "KeyError: 'x'")
    """
    from mpa_edge.vlm.transformers.model import is_out_of_memory

    if isinstance(error, MpaError):
        return Failure(kind="user", message=str(error))
    kind = "memory" if is_out_of_memory(error) else "peer" if lost_peer(error) else "other"
    said = "".join(traceback.format_exception(error))
    return Failure(kind=kind, message=f"{type(error).__name__}: {error}", trace=said)


def lost_peer(error: Exception) -> bool:
    """Whether another training process went away: gloo and NCCL say so in errors of this kind.

    >>> lost_peer(RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer"))
    True
    """
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def work(order: Order, folder: Path) -> None:
    """Meet the others, take the recipe of the first, train, and let the first write what came of it."""
    import torch
    from accelerate import PartialState

    from mpa_edge.runs.files import write_json
    from mpa_edge.runs.manifest import StageClock
    from mpa_edge.stages.level import training
    from mpa_edge.stages.level.ddp import agreed
    from mpa_edge.stages.level.stage import choose
    from mpa_edge.vlm.transformers import checkpoint

    device = checkpoint.pick_device(order.recipe.device)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    state = PartialState(cpu=device == "cpu")
    recipe, at_once = agreed((order.recipe, order.at_once))
    run = _run(order, recipe)
    checkpoint.set_threads(order.threads)
    out = Path(order.out)
    outcome = training.learn(run, choose(run), Path(order.checkpoints), out, StageClock(out.parent), at_once)
    if state.is_main_process:
        write_json(folder / OUTCOME, summary(run, outcome, device, state.num_processes))
    state.wait_for_everyone()
    state.destroy_process_group()


def _run(order: Order, recipe: Any) -> Run:
    from mpa_edge.stages.run import Run

    return Run(Path(order.run), recipe, order.images, order.limit)


def summary(run: Run, outcome: Outcome, device: str, count: int) -> dict[str, Any]:
    """For the manifest: what training came to, and what did it."""
    from mpa_edge.stages.level.precision import numbers_used
    from mpa_edge.stages.run import device_used, memory_counts

    used = device_used(run.recipe.device) | numbers_used(run.recipe.level, device) | {"processes": str(count)}
    return {
        "losses": outcome.losses,
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "used": used,
        **memory_counts(),
    }


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # whoever failed must not wait in a destructor for peers that wait for it
