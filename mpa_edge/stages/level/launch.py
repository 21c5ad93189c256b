"""Starts training in several processes with accelerate's own launcher, and brings home what came of it.

The launcher is a child of this process and the parent of the training processes; whoever loses its parent is ended by
the system, so that nobody trains on alone. accelerate ends all of them where one dies. What they have to say lies in
files: what training came to, or why one of them failed.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import CalledProcessError
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.progress import say
from mpa_edge.runs.files import make_folder, read_json, write_json
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.runs.manifest import CLOCK, seconds_so_far
from mpa_edge.runs.write_hooks import tell
from mpa_edge.stages.level.processes import Processes, require_possible

if TYPE_CHECKING:
    from mpa_edge.stages.run import Run

FOLDER = ".processes"
ORDER = "order.json"
OUTCOME = "outcome.json"
FAILED = "failed-{}.json"
CONFIG = "accelerate.json"
LAUNCHER = "MPA_EDGE_LAUNCHER"
LOOK_EVERY_S = 1.0


class Order(BaseModel):
    """What a training process is told. Recipe and batch are those of machine 0, whatever the others were told."""

    run: str
    """Run folder."""
    recipe: Recipe
    """Validated."""
    images: str | None
    """Folder of images on this machine."""
    limit: int | None
    """Of the images."""
    at_once: int
    """Samples in the memory of one process."""
    threads: int
    """CPU threads of one process."""
    checkpoints: str
    """Folder of the checkpoints."""
    out: str
    """Where the adapter goes."""
    quiet: bool
    """Leave out the notices of the libraries."""


class Failure(BaseModel):
    """Why a training process ended."""

    kind: str
    """user: the message is for the user as it is; memory: it ran out; peer: another one was lost; other: a mistake."""
    message: str
    """One line."""
    trace: str = ""
    """Traceback of a mistake."""


def launch(run: Run, asked: Processes, checkpoints: Path, out: Path, at_once: int) -> Any:
    """Train in several processes; what the first one wrote about it. MemoryError where one ran out of memory."""
    stage = out.parent
    folder = _fresh(stage / FOLDER)
    with _watched(stage):
        _start(asked, folder, _order(run, asked, checkpoints, out, at_once))
    made = read_json(folder / OUTCOME)
    if not isinstance(made, dict):
        raise MpaError(f"training ended and left nothing in {folder}: run the same command again, with -v")
    shutil.rmtree(folder)
    return made


def join(run: Run, names: tuple[str, ...]) -> None:
    """Train along on another machine than the first, which writes the run folder. MpaError where it cannot."""
    asked = run.processes
    if asked is None or names != ("level",):
        raise MpaError(
            f"'{asked and asked.config}' is of machine {asked and asked.machine}, which helps in level only: "
            f"run mpa-edge level {run.folder} there, and align on machine 0"
        )
    run.outputs_of("identify")
    require_possible(asked, run.recipe)
    stage = run.stage_folder("level").resolve()
    at_once = run.recipe.level.batch_size // asked.count  # machine 0 knows better
    with TemporaryDirectory() as folder:
        _start(asked, Path(folder), _order(run, asked, stage / "checkpoints", stage / "adapter", at_once))
    say(f"level: machine {asked.machine} has done its share")


def _order(run: Run, asked: Processes, checkpoints: Path, out: Path, at_once: int) -> Order:
    return Order(
        run=str(run.folder.resolve()),
        recipe=run.recipe,
        images=run.images,
        limit=run.limit,
        at_once=at_once,
        threads=run.recipe.threads or max(1, len(os.sched_getaffinity(0)) // asked.here),
        checkpoints=str(checkpoints),
        out=str(out.resolve()),
        quiet=logging.root.manager.disable >= logging.WARNING,
    )


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return make_folder(folder)


@contextmanager
def _watched(stage: Path) -> Iterator[None]:
    """Pass on, in this process, that another one has written a checkpoint.

    That one writes the seconds while it lasts; this one counts the whole of it at the end.
    """
    before, ended = seconds_so_far(stage), Event()
    watcher = Thread(target=_pass_on, args=(stage, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    write_json(stage / CLOCK, {"seconds": before})


def _pass_on(stage: Path, ended: Event) -> None:
    last = seconds_so_far(stage)
    while not ended.wait(LOOK_EVERY_S):
        if (now := seconds_so_far(stage)) != last:
            last = now
            with suppress(MpaError):  # said again at the end of the stage, where it can be heard
                tell(stage)


def _start(asked: Processes, folder: Path, order: Order) -> None:
    """Run the launcher until all processes have ended. MpaError or MemoryError where one failed."""
    write_json(folder / ORDER, order)
    write_json(folder / CONFIG, plain_config(asked.count))
    try:
        run_isolated(accelerate_launch, arguments(asked, str(folder / ORDER)), order.quiet)
    except (MpaError, RuntimeError) as error:
        raise _reason(folder, error, asked) from None


def arguments(asked: Processes, order: str) -> list[str]:
    """Words of `accelerate launch` for these processes.

    >>> arguments(Processes(2), "order.json")[:5]
    ['--num_processes', '2', '--num_machines', '1', '--multi_gpu']
    """
    words = ["--num_processes", str(asked.count), "--num_machines", str(asked.machines)]
    words += ["--multi_gpu"] if asked.count > 1 else []
    words += ["--config_file", asked.config or str(Path(order).with_name(CONFIG))]
    if asked.machines == 1:
        words += ["--main_process_port", "0"]  # any free one: the usual port may be another training's
    return [*words, "--module", "mpa_edge.stages.level.ddp_worker", order]


def plain_config(count: int) -> dict[str, Any]:
    """What accelerate is told without a user's file; it would take that of `accelerate config`, made for other work."""
    kind = "MULTI_GPU" if count > 1 else "NO"
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": kind,
        "mixed_precision": "no",
        "use_cpu": False,
        "debug": False,
        "num_processes": count,
    }


def accelerate_launch(words: list[str], quiet: bool) -> None:
    """`accelerate launch`, in a process of its own; MpaError where a training process died or the words are refused."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ[LAUNCHER] = str(os.getpid())
    if quiet:
        logging.disable(logging.CRITICAL)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if sys.platform == "linux" and words[words.index("--num_machines") + 1] == "1":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine whose own name leads nowhere can train, too
    try:
        launch_command(launch_command_parser().parse_args(words))
    except ChildFailedError as error:
        raise _died(*first_dead({rank: failure.exitcode for rank, failure in error.failures.items()})) from None
    except SignalException as error:  # to the whole group, as batch systems send it
        raise MpaError(
            f"training was ended by signal {int(error.sigval)}: run the same command again, it goes on from the last "
            f"checkpoint"
        ) from None
    except CalledProcessError as error:
        raise _died(0, error.returncode) from None
    except (ValueError, AssertionError, ConnectionError) as error:
        why = str(error).strip().splitlines()[0]
        raise MpaError(f"accelerate refuses to start ({why}): mend --accelerate-config") from None


def first_dead(codes: Mapping[int, int]) -> tuple[int, int]:
    """(process, exit code) of the one that the others died of: who was killed, and not by the launcher's own SIGTERM.

    >>> first_dead({0: 1, 1: -9}), first_dead({0: -15, 1: 1}), first_dead({0: 1})
    ((1, -9), (1, 1), (0, 1))
    """
    return min(codes.items(), key=lambda item: (item[1] == -signal.SIGTERM, item[1] > 0, item[0]))


def _died(rank: int, code: int) -> MpaError:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return MpaError(
        f"training process {rank} {how}, and all others with it: run the same command again, it goes on from the last "
        f"checkpoint"
    )


def _reason(folder: Path, error: Exception, asked: Processes) -> Exception:
    """What a training process wrote before it ended says more than how it ended; the others only lost a peer."""
    said = [
        Failure.model_validate(found) for path in sorted(folder.glob(FAILED.format("*"))) if (found := read_json(path))
    ]
    for kind in ("memory", "user", "other"):
        for failure in (one for one in said if one.kind == kind):
            return _error_of(failure, asked)
    return error  # a peer that was killed: what those say who lost it is noise


def _error_of(failure: Failure, asked: Processes) -> Exception:
    if failure.kind == "user":
        return MpaError(failure.message)
    if failure.kind == "memory" and asked.machines == 1:
        return MemoryError(failure.message)
    if failure.kind == "memory":
        return MpaError(
            "out of memory in a training process: use --set level.gradient_checkpointing=true, or more processes"
        )
    say(failure.trace)
    return RuntimeError(failure.message)
