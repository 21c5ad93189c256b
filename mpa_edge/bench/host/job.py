"""A detached job on the device: it survives a broken link, a client that is killed, and a restart of the device."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from mpa_edge.bench.device.protocol import ERRORS, LINE_BYTES, OUT, OUT_BYTES
from mpa_edge.bench.transports.transport import Transport, last_line, quoted_path
from mpa_edge.config import library
from mpa_edge.errors import MpaError
from mpa_edge.progress import say
from mpa_edge.runs.files import make_folder
from mpa_edge.runs.paths import open_in_place

State = Literal["running", "ended", "dead", "none"]
CALL_S = 30.0
# stopping gives the processes three seconds to end by themselves; then starting waits for the new one
START_S = 60.0
MAX_RESTARTS = 3
# beyond the end of any file: a poll returns only the state
NOTHING = 1 << 50
POLLED = re.compile(rb"(running|ended|dead|none) +([0-9]{1,3}|-) +([0-9]{1,15})")


@dataclass(frozen=True)
class Poll:
    """The state of a job at one moment."""

    state: State
    """running, ended, dead (killed, or the device restarted), none."""
    rc: int | None
    """Exit status, once it has ended."""
    size: int
    """Bytes of out.jsonl there."""
    new: bytes
    """Content of out.jsonl after the requested offset, at most 1 MiB."""


class Job:
    """A command in a folder of the device. At most one runs there, however often it is started.

    The command runs in `folder` and appends whole lines to out.jsonl there; everything that it prints goes to err.txt.
    """

    def __init__(self, transport: Transport, folder: str) -> None:
        if any(ord(character) < ord(" ") for character in folder):
            raise MpaError(f"{folder!r} cannot be the folder of a job: use no control characters in its name")
        self.folder = folder
        self._transport = transport
        self._home = quoted_path(folder)
        self._command = ""

    def start(self, command: str, copy: Path | None = None) -> State:
        """Start it, unless it is running or has ended with 0; returns the state that it had before.

        copy: the host's copy of out.jsonl, which `lines` writes. Lines that the device lost (it lost power before they
        were on its disk) are restored from it first, so that no question is asked twice.
        """
        self._command = command
        if self.state() not in ("running", "ended"):
            self._transport.push(
                library.root() / "export" / "runners" / "job.sh", f"{self.folder}/job.sh", timeout_s=CALL_S
            )
            if copy is not None and copy.is_file():
                self._script(f"stop {self._home}")
                size = _cut_torn_line(copy)
                self._transport.push(copy, f"{self.folder}/ours", timeout_s=START_S)
                # the copy counts, because its lines were already processed
                restore = f"head -c {size} {OUT} | cmp -s - ours || mv -f ours {OUT}; rm -f ours"
                self._transport.checked(
                    f"keep a job in {self.folder}", f"cd {self._home} && {{ {restore}; }}", timeout_s=START_S
                )
        return cast(State, self._script(f"start {self._home} {shlex.quote(command)}").strip())

    def state(self) -> State:
        """running, ended, dead or none."""
        return self.poll().state

    def poll(self, offset: int = NOTHING) -> Poll:
        """The state, and the content of out.jsonl after `offset`."""
        script = f"[ -f {self._home}/job.sh ] || {{ echo none - 0; exit; }}; exec sh {self._home}/job.sh"
        done = self._transport.run(f"{script} poll {self._home} {offset}", timeout_s=CALL_S)
        if done.rc:
            self._transport.refused(f"keep a job in {self.folder}", done)
        first, _, new = done.stdout.partition(b"\n")
        found = POLLED.fullmatch(first.strip())
        if found is None:
            raise MpaError(
                f"job.sh on {self._transport.name} printed something else than a state ({last_line(first)}): rerun"
            )
        state, rc, size = found.group(1).decode(), found.group(2), int(found.group(3))
        return Poll(cast(State, state), int(rc) if rc != b"-" else None, size, new)

    def stop(self) -> None:
        """End it with everything that it started. Safe to call twice."""
        if self.state() != "none":
            self._script(f"stop {self._home}")

    def errors(self, last_bytes: int = 2000) -> str:
        """The end of what it printed; empty where it printed nothing."""
        script = f"tail -c {last_bytes} {self._home}/{ERRORS} 2>/dev/null || true"
        return self._transport.run(script, timeout_s=CALL_S).stdout.decode(errors="replace").strip()

    def lines(self, copy: Path, *, stall_s: float, poll_s: float = 2.0) -> Iterator[str]:
        """Every line of out.jsonl from the first on, as they come, until the job has ended; each goes to `copy` too.

        A job that died is started again, at most MAX_RESTARTS times in a row. MpaError where that does not help, or
        where no line comes for `stall_s` while the device can be reached, or where a line or all of them are too long:
        the job is stopped then.
        """
        offset, still_s, restarts = _cut_torn_line(copy), 0.0, 0
        if offset:
            with copy.open("rb") as file:
                yield from (line.decode(errors="replace").removesuffix("\n") for line in file)
        where = self._transport.name
        while True:
            poll = self.poll(offset)
            whole = poll.new[: poll.new.rfind(b"\n") + 1]
            if whole:
                with open(copy, "ab", opener=open_in_place) as file:
                    file.write(whole)
                    file.flush()
                    os.fsync(file.fileno())
                offset, still_s, restarts = offset + len(whole), 0.0, 0
                yield from _split(whole)
            if offset > OUT_BYTES or (not whole and len(poll.new) >= LINE_BYTES):
                self.stop()
                raise MpaError(
                    f"the job on {where} wrote more than a benchmark does and was stopped: look at {self.folder}/{OUT} "
                    "there, then rerun with --fresh"
                )
            if whole:
                continue
            if poll.state == "ended":
                return
            if poll.state != "running" and self._command:
                restarts += 1
                if restarts > MAX_RESTARTS:
                    raise MpaError(
                        f"the job on {where} was killed {restarts} times ({last_line(self.errors())}): "
                        "check whether the device runs out of memory or power, then rerun"
                    )
                say(f"the job on {where} was killed, or the device restarted: resuming it")
                self.start(self._command, copy)
            elif still_s > stall_s:
                last = last_line(self.errors())
                self.stop()
                raise MpaError(
                    f"the job on {where} gave no answer for {stall_s:.0f} s and was stopped ({last}): rerun to resume"
                )
            # only these waits count, so neither a broken link nor a change of the clock can end a job
            time.sleep(poll_s)
            still_s += poll_s

    def _script(self, words: str) -> str:
        script = f"exec sh {self._home}/job.sh {words}"
        return self._transport.checked(f"keep a job in {self.folder}", script, timeout_s=START_S)


def _cut_torn_line(copy: Path) -> int:
    """Remove the part of a line that a kill left; returns the bytes that remain. The folder is made."""
    make_folder(copy.parent)
    if not copy.is_file():
        return 0
    size = all_bytes = copy.stat().st_size
    with copy.open("rb") as file:
        while size:  # from the end on, in parts
            start = max(0, size - LINE_BYTES)
            file.seek(start)
            found = file.read(size - start).rfind(b"\n")
            size = start + found + 1
            if found >= 0:
                break
    if size < all_bytes:
        with open(copy, "r+b", opener=open_in_place) as file:
            file.truncate(size)
    return size


def _split(whole: bytes) -> list[str]:
    # not splitlines(): an answer may hold U+2028 and other separators
    return whole.decode(errors="replace").split("\n")[:-1]
