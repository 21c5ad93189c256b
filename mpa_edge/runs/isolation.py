"""Runs a heavy step in a process of its own, which frees all of its memory and makes its peak known."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from mpa_edge.errors import MachineError, MpaError
from mpa_edge.runs.files import FULL, disk_errors, disk_full
from mpa_edge.runs.log import append_to, log_path, logger, redacted
from mpa_edge.runs.memory import peak_rss_bytes

Result = TypeVar("Result")
# imported once, in a server process that each step is a fork of: a process that starts anew spends 5 s of CPU on them
IMPORTED = (
    "mpa_edge.runs.step_server",
    "torch",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    "transformers.models.auto.image_processing_auto",
    "torch.export._trace",
    "onnxscript.function_libs.torch_lib.ops",
)
# safetensors and torch raise no OSError for a full disk: the text is all there is to recognize it by
FULL_PHRASES = ("No space left", "File too large", "Disk quota exceeded", "file write failed", "unexpected pos")


def run_isolated(
    function: Callable[..., Result],
    *arguments: Any,
    threads: int | None = None,
    scratch: Path | None = None,
    once: bool = False,
) -> tuple[Result, int]:
    """(what `function(*arguments)` returns, peak resident bytes of the process that ran it).

    Function and arguments must be picklable, as a module's top-level function with plain values is. An MpaError comes
    through as it is, and so does the OSError of a full disk; a process that the system killed becomes a MachineError.
    Output goes to stderr. `scratch` is an existing folder for the libraries' temporary files (None: the system's), so
    that those of a killed process can be found and removed. The libraries stay imported in a process that waits for the
    next step, 0.4 GB; with `once` they do not.
    """
    context = _context(once)
    ours, theirs = context.Pipe(duplex=False)
    given = _Given(theirs, log_path(), dict(os.environ), function, arguments, threads, scratch)
    logger.debug("%s: starting in a process of its own", function.__name__)
    process = context.Process(target=_child, args=(given, _Stderr()), daemon=True)
    with _sheltered():
        process.start()
    theirs.close()
    try:
        outcome = ours.recv()
    except EOFError:
        process.join()
        name = function.__name__
        if process.exitcode == -signal.SIGKILL:
            full = f"{name} was killed, most likely because memory ran out: free memory, then rerun"
            raise MachineError(full) from None
        raise MpaError(f"{name} ended with code {process.exitcode}: rerun with -v") from None
    finally:
        if process.is_alive() and sys.exc_info()[0] is not None:
            process.kill()
        process.join()
    kind, value, peak_bytes = outcome
    logger.debug("%s: ended, peak memory %.0f MB", function.__name__, peak_bytes / 1e6)
    if kind == "error":
        raise value
    return value, peak_bytes


@contextmanager
def _sheltered() -> Iterator[None]:
    """Processes started in the block ignore Ctrl-C; the parent ends them."""
    resource_tracker.ensure_running()  # starting it later would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class _Given:
    """What a child needs to know."""

    pipe: Connection
    log: Path | None
    environment: dict[str, str]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    threads: int | None
    scratch: Path | None


class _Stderr:
    """Our stderr as it is now, for a child whose own is that of the server."""

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return (_take_stderr, (reduction.DupFd(2),))


def _take_stderr(sent: Any) -> None:
    """Runs in the child, when its arguments are read."""
    ours = sent.detach()
    os.dup2(ours, 2)
    os.close(ours)


def _context(once: bool) -> Any:
    """How processes start: forked from a server, or where that is not safe (macOS), each from nothing."""
    if once or sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def die_with_parent() -> None:
    """End this process when its parent is killed, since an orphan could write beside the next attempt.

    Linux only (prctl, PR_SET_PDEATHSIG); elsewhere a child of a killed parent finishes its step.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)
        asked = multiprocessing.parent_process()
        if asked is not None and not asked.is_alive():  # it died before the call
            os._exit(1)


def _use_threads(threads: int | None) -> None:
    """Set the libraries' threads. A fork leaves torch without its pool: without a call it would be made in a race."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads or torch.get_num_threads())


def _child(given: _Given, _stderr: None) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    os.dup2(2, 1)  # stdout belongs to the parent's one document
    os.environ.clear()
    os.environ.update(given.environment)
    pipe, log, function, arguments, scratch = given.pipe, given.log, given.function, given.arguments, given.scratch
    if log is not None:
        append_to(log)
    _use_threads(given.threads)
    if scratch is not None:
        tempfile.tempdir = str(scratch)
    try:
        pipe.send(("result", function(*arguments), peak_rss_bytes()))
    except MpaError as error:
        pipe.send(("error", error, peak_rss_bytes()))
    except MemoryError:
        full = MachineError("out of memory: use a machine with more, or a smaller model")
        pipe.send(("error", full, peak_rss_bytes()))
    except Exception as error:
        if isinstance(error, OSError) and is_full(error):
            return pipe.send(("error", OSError(errno.ENOSPC, "no space left"), peak_rss_bytes()))
        logger.exception("%s failed", function.__name__)
        if log is None:
            sys.stderr.write(redacted(traceback.format_exc()))
        pipe.send(("error", RuntimeError(f"{type(error).__name__}: {error}"), peak_rss_bytes()))


def is_full(error: OSError) -> bool:
    """Whether a write did not fit. numpy says so without a number.

    >>> is_full(OSError("65536 requested and 61360 written")), is_full(FileNotFoundError(2, "no such file"))
    (True, False)
    """
    return error.errno in FULL or (error.errno is None and " requested and " in str(error))


@contextmanager
def disk_guard(folder: Path, need_bytes: int) -> Iterator[None]:
    """Turn a full disk inside the block into an MpaError, also where safetensors or torch raise their own errors."""
    with disk_errors(folder, need_bytes):
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            if any(phrase in str(error) for phrase in FULL_PHRASES):
                raise disk_full(folder, need_bytes) from error
            raise
