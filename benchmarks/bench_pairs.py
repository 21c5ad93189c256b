"""Harness and bare loop in turn: two processes, of which one waits while the other answers all questions of a bundle.

The harness's side is the real worker process of the bundle, with its journal; the sensors are read by probe.sh as in
a job, but stand still while the bare loop works: their cost is the harness's alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from bench_jobs import ONE_THREAD, ids_of, order_for

from mpa_edge.bench.device.protocol import OUT, WATCH, Step
from mpa_edge.bench.device.runner import LOG, Journal, Worker
from mpa_edge.bench.host.bundle import Bundle
from mpa_edge.bench.results.timing import figure

Answer = dict[str, Any]
"""ttft_s, tpot_s, tokens_per_s."""
LONGEST_S = 600.0


class Bare:
    """The process of bench_bare.py; `notes`: a file to which each answer is written, as the harness does it."""

    def __init__(self, bundle: Path, threads: int, notes: Path | None = None) -> None:
        self._notes = notes.open("w") if notes else None
        script = Path(__file__).with_name("bench_bare.py")
        command = [sys.executable, str(script), str(bundle), str(threads)]
        self._process = subprocess.Popen(
            command, env=os.environ | ONE_THREAD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, question: str) -> Answer:
        """One answer. ClickException where the process ended."""
        if self._process.stdin is None or self._process.stdout is None:
            raise click.ClickException("the bare loop has no pipes")
        self._process.stdin.write(question + "\n")
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException("the bare loop ended: see its message above")
        if self._notes:
            self._notes.write(line)
            self._notes.flush()
            os.fsync(self._notes.fileno())
        found = json.loads(line)
        tpot_s = found["decode_s"] / (found["tokens"] - 1)
        return found | {"tpot_s": tpot_s, "tokens_per_s": 1 / tpot_s}

    def __enter__(self) -> Bare:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        if self._notes:
            self._notes.close()


class Harness:
    """The worker process of a job, asked step by step."""

    def __init__(self, worker: Worker, journal: Journal, watch: int) -> None:
        self._worker, self._journal, self._watch = worker, journal, watch
        for kind in ("loaded", "warm"):
            self._line(kind)

    def turn(self, n: int) -> list[Answer]:
        """The next n answers of the order, one right behind the other."""
        os.killpg(self._watch, signal.SIGCONT)
        found = [self._next() for _ in range(n)]
        os.killpg(self._watch, signal.SIGSTOP)
        return found

    def _next(self) -> Answer:
        self._worker.go_on()
        return self._line("answer")

    def _line(self, kind: str) -> Answer:
        if kind == "warm":
            self._worker.go_on()
        line = self._worker.line(LONGEST_S)
        if line is None or line.kind != kind:
            raise click.ClickException(f"the worker said {line} where {kind} was due")
        self._journal.write(line)
        return line.values


@contextmanager
def watch(bundle: Path, folder: Path) -> Iterator[int]:
    """The sensors of a job, once a second; the process group."""
    with (folder / WATCH).open("wb") as out:
        command = ["sh", str(bundle / "probe.sh"), "watch", "1"]
        process = subprocess.Popen(command, stdout=out, start_new_session=True)
        try:
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def pairs(
    bundle: Bundle, folder: Path, rounds: int, threads: int, *, notes: bool = False
) -> list[tuple[Answer, Answer]]:
    """(harness, bare) about the same question, `rounds` times A B B A: two pairs of each question.

    `notes`: the bare loop puts each answer on the disk, too, before the next question comes.
    """
    folder.mkdir(parents=True)
    asked = ids_of(bundle)
    steps = [Step("artifact", question, turn) for turn in range(2 * rounds) for question in asked]
    order = order_for(bundle, steps, threads)
    task = {"order": asdict(order), "variant": "artifact", "block": 0, "cold": True}
    with (
        Bare(bundle.folder, threads, folder / "bare.jsonl" if notes else None) as bare,
        Journal(folder / OUT) as journal,
        watch(bundle.folder, folder) as group,
        Worker(bundle.folder, folder / LOG, task) as worker,
    ):
        harness = Harness(worker, journal, group)
        bare.ask(asked[0])  # its warm-up
        turns = [both(harness, bare, asked, bare_first=bool(turn % 2)) for turn in range(2 * rounds)]
    return [pair for turn in turns for pair in turn]


def both(harness: Harness, bare: Bare, asked: Sequence[str], *, bare_first: bool) -> list[tuple[Answer, Answer]]:
    """All questions to both."""
    early = [bare.ask(question) for question in asked] if bare_first else []
    ours = harness.turn(len(asked))
    return list(zip(ours, early or [bare.ask(question) for question in asked], strict=True))


def compared(found: Sequence[tuple[Answer, Answer]], metric: str) -> dict[str, Any]:
    """Medians of both sides, and the median over the pairs of harness / bare with its interval.

    >>> made = compared([({"x": 2.0}, {"x": 1.0}), ({"x": 4.0}, {"x": 2.0}), ({"x": 6.0}, {"x": 3.0})], "x")
    >>> made["harness"], made["bare"], made["ratio"]
    (4.0, 2.0, 2.0)
    """
    ratio = figure([one[metric] / other[metric] for one, other in found], "")
    sides = (figure([side[metric] for side in sides], "").p50 for sides in zip(*found, strict=True))
    harness, bare = (None if side is None else round(side, 6) for side in sides)
    return {
        "harness": harness,
        "bare": bare,
        "ratio": round(ratio.p50 or 0.0, 4),
        "ci95": None if ratio.ci95 is None else [round(end, 4) for end in ratio.ci95],
    }
