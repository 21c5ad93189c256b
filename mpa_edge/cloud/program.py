"""Somebody else's program (`sky`, `hf`, a copy command): found, run, and its words passed on without secrets."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mpa_edge.errors import MpaError

BESIDE = Path(sys.executable).parent


@dataclass(frozen=True)
class Ended:
    """A program that has ended."""

    code: int
    """Its exit status."""
    out: str
    """What it printed on stdout, without secrets."""


def find(name: str) -> str | None:
    """The program's file: in PATH, else beside this Python (`hf` comes with what mpa-edge needs). None: not there."""
    return shutil.which(name) or shutil.which(name, path=str(BESIDE))


def run(words: Sequence[str], redact: Callable[[str], str], show: Callable[[str, bool], None]) -> Ended:
    """Run a program to its end. `show(line, is_stderr)` gets each line as it comes. MpaError where it cannot start.

    It reads nothing: a question that nobody sees would wait for ever.
    """
    try:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise MpaError(f"cannot start {words[0]} ({error.strerror}): install it again") from error
    kept: list[str] = []

    def pass_on(stream: IO[str], is_stderr: bool) -> None:
        for line in stream:
            plain = redact(line.rstrip("\n"))
            if not is_stderr:
                kept.append(plain)
            show(plain, is_stderr)

    with child:
        if child.stdout is None or child.stderr is None:
            raise MpaError(f"cannot read what {words[0]} says: run it yourself: {shlex.join(words)}")
        errors = threading.Thread(target=pass_on, args=(child.stderr, True))
        errors.start()
        pass_on(child.stdout, False)
        errors.join()
    return Ended(child.returncode, "\n".join(kept))
