"""The runner on the device: one process for each block of questions, one line in out.jsonl for each event.

Standard library only, for Python 3.10 or newer, so that it can say in one line what else is missing. All of its state
is in out.jsonl: after a kill at any moment, a rerun resumes.
"""

from __future__ import annotations

import collections
import fcntl
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mpa_edge.bench.device import protocol
from mpa_edge.bench.device.protocol import JobOrder, Line, Step
from mpa_edge.errors import MpaError

RUN, WORKER, LOG = "run.py", "--worker", "worker.txt"
MAX_FAULTS = 3
# a large model loads slowly from a memory card
LOAD_TIMEOUT_S = 900.0
# format -> module that must be there -> its name for pip
COMMON = {"numpy": "numpy", "PIL": "pillow", "pydantic": "pydantic"}
ONNX = COMMON | {"onnxruntime": "onnxruntime", "tokenizers": "tokenizers"}
GGUF = COMMON | {"llama_cpp": "llama-cpp-python==0.3.36", "gguf": "gguf"}
HYBRID = GGUF | {"onnxruntime": "onnxruntime"}
PACKAGES = {"onnx": ONNX, "gguf": GGUF, "hybrid": HYBRID}


def main(arguments: Sequence[str], bundle: Path) -> int:
    """`run.py JOBDIR` of a bundle. The exit status: 0 all answered, 1 something failed, 2 wrong usage."""
    if list(arguments[:1]) == [WORKER]:
        from mpa_edge.bench.device.worker import work

        return work(bundle, int(arguments[1]))
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python3 run.py JOBDIR\n")
        return 2
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        return run_job(Path(arguments[0]), bundle)
    except MpaError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def run_job(folder: Path, bundle: Path) -> int:
    """Ask every question of the order that has no answer yet. MpaError where nothing can be asked at all."""
    if not folder.is_dir():
        raise MpaError(f"no folder {folder}: make it, the answers go there")
    path = folder / protocol.ORDER if (folder / protocol.ORDER).exists() else bundle / protocol.ORDER
    try:
        order = protocol.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MpaError(f"{path} is missing or damaged: send the bundle and the job again") from error
    questions = protocol.read_questions(bundle)
    for step in order.steps:
        if step.id not in questions or step.variant not in order.variants:
            raise MpaError(f"the order asks {step.variant} for '{step.id}', which is not here: send the bundle again")
    require_packages(bundle, order)
    with Journal(folder / protocol.OUT) as journal:
        supervisor = Supervisor(bundle, folder, order, journal)
        supervisor.prepare()
        if order.soak_s:
            supervisor.soak()
        else:
            for block in protocol.blocks(journal.todo(order)):
                supervisor.ask(block)
        journal.end()
    return 1 if supervisor.failed else 0


def require_packages(bundle: Path, order: JobOrder) -> None:
    """MpaError with the pip command for whatever is missing here."""
    needed: dict[str, str] = {}
    for name in order.variants.values():
        with suppress(OSError, ValueError, TypeError, KeyError):  # the worker reports a damaged model
            needed |= PACKAGES[json.loads((bundle / name / "artifact.json").read_bytes())["format"]]
    lacking = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if lacking:
        named, python = ", ".join(package.partition("=")[0] for package in lacking), os.path.basename(sys.executable)
        raise MpaError(f"{named} missing on this device: {python} -m pip install {' '.join(lacking)}")


class Journal:
    """out.jsonl: append-only, each line is on disk before anything else happens, one writer at a time."""

    def __init__(self, path: Path) -> None:
        """Open it and end a torn last line. MpaError where another runner writes it, or the disk is full."""
        from mpa_edge.runs.paths import open_in_place

        self.path = path
        self._file = open_in_place(path, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            raise MpaError(f"{path} is being written by another runner: wait for it, or stop it") from error
        except OSError:  # a file system without locks, like a phone's shared storage
            pass
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            # nothing is truncated: a reader that resumes at an offset must find the same bytes
            self._append(b"\n")
        self.lines = list(protocol.read_lines(content.decode("utf-8", "replace").split("\n")))

    def todo(self, order: JobOrder) -> list[Step]:
        """Steps of an order that have no answer yet."""
        done = protocol.answered(self.lines)
        return [step for step in order.steps if step.key not in done]

    def next_block(self) -> int:
        """Number for the next process."""
        return 1 + max((line.block for line in self.lines if line.kind != "end"), default=-1)

    def write(self, line: Line) -> None:
        """Append a line. MpaError where the disk is full."""
        self._append(protocol.to_line(line).encode())
        self.lines.append(line)

    def end(self) -> None:
        """Append the end line, unless nothing was written since the last one."""
        if not self.lines or self.lines[-1].kind != "end":
            self.write(Line("end"))

    def _append(self, rest: bytes) -> None:
        from mpa_edge.runs.files import MB, disk_errors

        with disk_errors(self.path.parent, MB):
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


class Supervisor:
    """Runs a process for each block of questions, and records the failures of processes that did not end well."""

    def __init__(self, bundle: Path, folder: Path, order: JobOrder, journal: Journal) -> None:
        self.bundle, self.folder, self.order, self.journal = bundle, folder, order, journal
        self.failed = False
        self._next = journal.next_block()
        self._loaded = {line.variant for line in journal.lines if line.kind == "loaded"}
        self._faults: collections.Counter[str] = collections.Counter()
        self._fatal: set[tuple[str, str]] = set()
        self._given_up: set[str] = set()

    def ask(self, block: Sequence[Step]) -> None:
        """Ask all questions of a block; those after one that ended its process go to another process."""
        variant = block[0].variant
        pending = [step for step in block if (variant, step.id) not in self._fatal]
        while pending and variant not in self._given_up:
            self._run_process(variant, pending)

    def prepare(self) -> None:
        """Have the engines of each model built, and what computes it found out, where that is not sure."""
        done = {line.variant for line in self.journal.lines if line.kind in ("used", "answer")}
        for variant in self.order.variants if self.order.accelerators != ("cpu",) else ():
            asked = [step for step in self.order.steps if step.variant == variant]
            if variant not in done and asked:
                self._run_process(variant, asked[-1:], prepare=True)

    def soak(self) -> None:
        """Ask for as many seconds as the journal does not have yet; after a process that died, by another one."""
        variant = self.order.steps[0].variant
        while variant not in self._given_up:
            done_s = sum(line.values.get("seconds", 0.0) for line in self.journal.lines if line.kind == "sample")
            if (left_s := self.order.soak_s - done_s) < protocol.NEXT_TO_NOTHING_S:
                break
            self._run_process(variant, list(self.order.steps), soak_s=left_s)

    def _run_process(self, variant: str, pending: list[Step], *, prepare: bool = False, soak_s: float = 0.0) -> None:
        """One process; steps that are done leave `pending`. `soak_s`: that are left of a soak."""
        block, self._next = self._next, self._next + 1
        order = asdict(replace(self.order, steps=tuple(pending), soak_s=soak_s))
        cold = variant not in self._loaded
        task = {"order": order, "variant": variant, "block": block, "cold": cold, "prepare": prepare}
        is_loaded, limit_s = False, protocol.BUILD_TIMEOUT_S if prepare else LOAD_TIMEOUT_S
        limit_s = max(limit_s, self.order.answer_timeout_s)
        with Worker(self.bundle, self.folder / LOG, task) as worker:
            while True:
                try:
                    line = worker.line(limit_s)
                except TimeoutError:
                    reason = f"no answer within {limit_s:g} s"
                    break
                if line is None:
                    reason = worker.wait()
                    break
                self._record(line, pending)
                if line.kind == "loaded":
                    is_loaded, limit_s = True, self.order.answer_timeout_s
                if prepare or line.kind == "memory" or variant in self._given_up:
                    return
                worker.acknowledge()
        self._faults[variant] += 1
        values: dict[str, Any] = {"reason": reason}
        if is_loaded and pending:  # the first pending question is what ended it
            self._fatal.add((variant, pending[0].id))
            values |= {"id": pending[0].id, "repetition": pending[0].repetition}
            if self._faults[variant] >= MAX_FAULTS:
                self._given_up.add(variant)
                values["reason"] += f"; given up after {MAX_FAULTS} processes"
        self._record(Line("failed", variant, block, values), pending)

    def _record(self, line: Line, pending: list[Step]) -> None:
        if line.kind != "warm":
            self.journal.write(line)
        if line.kind == "loaded":
            self._loaded.add(line.variant)
        if "id" in line.values:
            pending.pop(0)
        if line.kind == "failed":
            self.failed = True
            if "id" not in line.values:  # a model that does not load would fail again
                self._given_up.add(line.variant)


class Worker:
    """A process that answers one block. Its lines come through a socket, so it cannot outlive the runner."""

    def __init__(self, bundle: Path, log: Path, task: dict[str, Any]) -> None:
        from mpa_edge.runs.paths import new_file

        self._log = log
        self._socket, theirs = socket.socketpair()
        self._lines = self._socket.makefile("rb")
        isolated = ["-I"] if sys.flags.isolated else []
        command = [sys.executable, "-B", *isolated, str(bundle / RUN), WORKER, str(theirs.fileno())]
        with new_file(log) as output, theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, pass_fds=[theirs.fileno()]
            )
        self._send(json.dumps(task).encode() + b"\n")

    def line(self, timeout_s: float) -> Line | None:
        """The next line; None when the process has ended. TimeoutError where nothing comes in time."""
        self._socket.settimeout(timeout_s)
        with suppress(ConnectionResetError):
            return next(protocol.read_lines([self._lines.readline().decode()]), None)
        return None

    def acknowledge(self) -> None:
        """Tell the worker that its last line is on disk."""
        self._send(b"\n")

    def _send(self, data: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the end of the process shows when its lines are read
            self._socket.sendall(data)

    def wait(self) -> str:
        """How the process ended, in words, with the last line that it printed.

        If a signal asked it to stop, the runner exits quietly too: a job is stopped by a signal to all of its
        processes, which reaches them in any order.
        """
        status = self._process.wait()
        if -status in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            sys.exit(128 - status)
        return ending(status, self._log.read_text(encoding="utf-8", errors="replace"))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._lines.close()
        self._socket.close()


def ending(status: int, output: str) -> str:
    r"""How a process ended, in words.

    >>> ending(-9, "")
    'killed (SIGKILL), probably out of memory'
    >>> ending(-6, "loading\nGGML_ASSERT failed\n")
    'crashed (SIGABRT): GGML_ASSERT failed'
    >>> ending(3, "")
    'ended with exit status 3'
    """
    if status == -signal.SIGKILL:
        words = "killed (SIGKILL), probably out of memory"
    elif status < 0:
        words = f"crashed ({signal.Signals(-status).name})"
    else:
        words = f"ended with exit status {status}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return f"{words}: {lines[-1][:200]}" if lines else words
