"""The runner on the device: a process for each block of questions, a line in out.jsonl for each thing that happened.

Standard library only, and no newer Python than 3.10, so that it can say in one line what else is missing. It keeps
nothing in memory that is not in out.jsonl: killed at any moment, the same command goes on where it was.
"""

from __future__ import annotations

import collections
import fcntl
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from mpa_edge.bench.device.protocol import (
    ORDER,
    OUT,
    JobOrder,
    Line,
    Step,
    answered,
    blocks,
    from_json,
    read_lines,
    to_line,
)
from mpa_edge.errors import MpaError

QUESTIONS, RUN, WORKER, LOG = "questions.jsonl", "run.py", "--worker", "worker.txt"
MOST_FAULTS = 3
# a large model comes slowly from a memory card
LOAD_TIMEOUT_S = 900.0
# format -> module that must be there -> what pip calls it
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
    """Ask everything of an order that has no answer yet. MpaError where nothing can be asked at all."""
    order = read_order(folder, bundle)
    questions = read_questions(bundle)
    for step in order.steps:
        if step.id not in questions or step.variant not in order.variants:
            raise MpaError(f"the order asks {step.variant} for '{step.id}', which is not here: send the bundle again")
    require_packages(bundle, order)
    with Journal(folder / OUT) as journal:
        done = answered(journal.lines)
        todo = [step for step in order.steps if step.key not in done]
        foreman = Supervisor(bundle, folder, order, journal)
        for block in blocks(todo):
            foreman.ask(block)
        if todo or not any(line.kind == "end" for line in journal.lines):
            journal.write(Line("end"))
    return 1 if foreman.failed else 0


def read_order(folder: Path, bundle: Path) -> JobOrder:
    """What is to be asked: of the job, else of the bundle (each question once). MpaError where it is damaged."""
    path = folder / ORDER if (folder / ORDER).exists() else bundle / ORDER
    if not folder.is_dir():
        raise MpaError(f"no folder {folder}: make it, the answers go there")
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MpaError(f"{path} is missing or damaged: send the bundle and the job again") from error


def read_questions(bundle: Path) -> dict[str, dict[str, Any]]:
    """Questions by id. MpaError where the file is damaged."""
    path = bundle / QUESTIONS
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return {row["id"]: row for row in rows}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MpaError(f"{path} is missing or damaged: send the bundle again") from error


def require_packages(bundle: Path, order: JobOrder) -> None:
    """MpaError that names the command to install what is missing here."""
    needed: dict[str, str] = {}
    for name in order.variants.values():
        with suppress(OSError, ValueError, TypeError, KeyError):  # a damaged model is for its own process to say
            needed |= PACKAGES[json.loads((bundle / name / "artifact.json").read_bytes())["format"]]
    lacking = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if lacking:
        named, python = ", ".join(package.partition("=")[0] for package in lacking), os.path.basename(sys.executable)
        raise MpaError(f"{named} missing on this device: {python} -m pip install {' '.join(lacking)}")


class Journal:
    """out.jsonl: only ever longer, each line on the disk before anything else happens, one writer at a time."""

    def __init__(self, path: Path) -> None:
        """Open it and end a torn last line. MpaError where another runner writes it, or the disk is full."""
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            raise MpaError(f"{path} is being written by another runner: wait for it, or stop it") from error
        except OSError:  # a file system without locks (a phone's shared storage): nobody can tell
            pass
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            # nothing is cut off: whoever reads on from an offset must find what stood there
            self._append(b"\n")
        self.lines = list(read_lines(content.decode("utf-8", "replace").split("\n")))

    def write(self, line: Line) -> None:
        """Append a line. MpaError where the disk is full."""
        self._append(to_line(line).encode())
        self.lines.append(line)

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
    """Gives blocks of questions to processes, and says what became of those that did not end well."""

    def __init__(self, bundle: Path, folder: Path, order: JobOrder, journal: Journal) -> None:
        self.bundle, self.folder, self.order, self.journal = bundle, folder, order, journal
        self.failed = False
        self._next = 1 + max((line.block for line in journal.lines if line.kind != "end"), default=-1)
        self._loaded = {line.variant for line in journal.lines if line.kind == "loaded"}
        self._faults: collections.Counter[str] = collections.Counter()
        self._fatal: set[tuple[str, str]] = set()
        self._given_up: set[str] = set()

    def ask(self, block: Sequence[Step]) -> None:
        """All questions of a block; those behind one that ended its process go to another process."""
        pending, variant = [step for step in block if (step.variant, step.id) not in self._fatal], block[0].variant
        while pending and variant not in self._given_up:
            self._process(variant, pending)

    def _process(self, variant: str, pending: list[Step]) -> None:
        """One process; what is done leaves `pending`."""
        block, self._next = self._next, self._next + 1
        order = asdict(replace(self.order, steps=tuple(pending)))
        task = {"order": order, "variant": variant, "block": block, "cold": variant not in self._loaded}
        with Worker(self.bundle, self.folder / LOG, task) as worker:
            ready = False
            while True:
                limit_s = self.order.answer_timeout_s if ready else max(LOAD_TIMEOUT_S, self.order.answer_timeout_s)
                try:
                    line = worker.line(limit_s)
                except TimeoutError:
                    return self._fault(variant, block, pending if ready else [], f"no answer within {limit_s:g} s")
                if line is None:
                    worker.end_with_it()
                    return self._fault(variant, block, pending if ready else [], worker.how_it_ended())
                self._note(line, pending)
                ready = ready or line.kind == "loaded"
                if line.kind == "memory" or variant in self._given_up:
                    return None
                worker.go_on()

    def _note(self, line: Line, pending: list[Step]) -> None:
        if line.kind != "warm":
            self.journal.write(line)
        if line.kind == "loaded":
            self._loaded.add(line.variant)
        if "id" in line.values:
            pending.pop(0)
        if line.kind == "failed":
            self.failed = True
            if "id" not in line.values:  # a model that does not load would not do so the next time
                self._given_up.add(line.variant)

    def _fault(self, variant: str, block: int, pending: list[Step], reason: str) -> None:
        """Write down that a process ended before its time: at its first pending question, or while it loaded."""
        self._faults[variant] += 1
        values: dict[str, Any] = {"reason": reason}
        if pending:
            self._fatal.add((variant, pending[0].id))
            values |= {"id": pending[0].id, "repetition": pending[0].repetition}
        if pending and self._faults[variant] >= MOST_FAULTS:
            self._given_up.add(variant)
            values["reason"] += f"; given up after {MOST_FAULTS} processes"
        self._note(Line("failed", variant, block, values), pending)


class Worker:
    """A process that answers one block. Its lines come through a pipe, so that it cannot write when we are gone."""

    def __init__(self, bundle: Path, log: Path, task: dict[str, Any]) -> None:
        self._log, self._buffer = log, b""
        self._lines, theirs = os.pipe()
        isolated = ["-I"] if sys.flags.isolated else []
        command = [sys.executable, "-B", *isolated, str(bundle / RUN), WORKER, str(theirs)]
        with log.open("wb") as said:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT, pass_fds=[theirs]
            )
        os.close(theirs)
        self._tell(json.dumps(task).encode() + b"\n")

    def line(self, timeout_s: float) -> Line | None:
        """The next line; None where the process ended. TimeoutError where nothing comes in time."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._lines], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            part = os.read(self._lines, 2**16)
            if not part:
                return None
            self._buffer += part
        whole, _, self._buffer = self._buffer.partition(b"\n")
        return next(read_lines([whole.decode()]))

    def go_on(self) -> None:
        """Its last line is on the disk."""
        self._tell(b"\n")

    def _tell(self, data: bytes) -> None:
        pipe = self._process.stdin
        if pipe is not None:
            with suppress(BrokenPipeError):  # that it ended is seen where its lines are read
                pipe.write(data)
                pipe.flush()

    def end_with_it(self) -> None:
        """End quietly where somebody ended the process: who stops a job sends a signal to all of it, in any order."""
        if -self._process.wait() in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            sys.exit(128 - self._process.returncode)

    def how_it_ended(self) -> str:
        """In words, with the last thing that it said."""
        return ending(self._process.wait(), self._log.read_text(encoding="utf-8", errors="replace"))

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._process.kill()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        self._process.wait()
        os.close(self._lines)


def ending(status: int, said: str) -> str:
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
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"{words}: {lines[-1][:200]}" if lines else words
