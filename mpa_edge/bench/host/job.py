"""A job on the device that no cut link, no closed laptop and no restart of the device loses."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from mpa_edge.bench.device.protocol import ERRORS, OUT
from mpa_edge.bench.transports import Done, Transport
from mpa_edge.bench.transports.patience import PATIENCE_S, patiently
from mpa_edge.bench.transports.shell import quoted_path, refused
from mpa_edge.config import library
from mpa_edge.errors import MpaError
from mpa_edge.progress import say

State = Literal["running", "ended", "dead", "none"]
CALL_S = 30.0
# stopping gives the processes three seconds to end by themselves; then starting waits for the new one
START_S = 60.0
MOST_RESTARTS = 3
# an offset that no file reaches: only the state
NOTHING = 1 << 50


@dataclass(frozen=True)
class Poll:
    """What the device says of a job at one moment."""

    state: State
    """running, ended, dead (killed, or the device restarted), none."""
    rc: int | None
    """Exit status, once it has ended."""
    size: int
    """Bytes of out.jsonl there."""
    news: bytes
    """What is behind the offset that was asked for, at most 1 MiB."""


class Job:
    """A command in a folder of the device, of which there is one at most, however often it is started.

    LinkErrors are waited out for `patience_s`. The command runs in `folder` and appends whole lines to out.jsonl there;
    all that it prints goes to err.txt.
    """

    def __init__(self, transport: Transport, folder: str, *, patience_s: float = PATIENCE_S) -> None:
        if any(ord(character) < ord(" ") for character in folder):
            raise MpaError(f"{folder!r} cannot be the folder of a job: leave line breaks and the like out of its name")
        self.folder = folder
        self._transport = transport
        self._patience_s = patience_s
        self._home = quoted_path(folder)

    def start(self, command: str, copy: Path | None = None) -> State:
        """Begin it, unless it runs or has ended with 0; what it was before.

        copy: what `lines` has of out.jsonl. Where the device lost some of that (it went off before it had written it
        to the disk), it gets it back first, so that nothing is done twice.
        """
        return patiently(lambda: self._start(command, copy), patience_s=self._patience_s)

    def _start(self, command: str, copy: Path | None) -> State:
        if self._poll().state not in ("running", "ended"):
            program = library.root() / "export" / "runners" / "job.sh"
            self._transport.push(program, f"{self.folder}/job.sh", timeout_s=CALL_S)
            if copy is not None and copy.is_file():
                self._give_back(copy)
        done = self._script(f"start {self._home} {shlex.quote(command)}", START_S)
        return cast(State, done.stdout.decode().strip())

    def _give_back(self, copy: Path) -> None:
        """Make the device's out.jsonl begin with what we have of it; ours counts, for it was looked at."""
        self._script(f"stop {self._home}", START_S)
        size = _cut_torn_line(copy)
        self._transport.push(copy, f"{self.folder}/ours", timeout_s=START_S)
        script = f"cd {self._home} && {{ head -c {size} {OUT} | cmp -s - ours || mv -f ours {OUT}; rm -f ours; }}"
        self._checked(self._transport.run(script, timeout_s=START_S))

    def state(self) -> State:
        """running, ended, dead or none."""
        return self.poll().state

    def poll(self, offset: int = NOTHING) -> Poll:
        """State, and what is behind `offset` of out.jsonl."""
        return patiently(lambda: self._poll(offset), patience_s=self._patience_s)

    def _poll(self, offset: int = NOTHING) -> Poll:
        script = f"[ -f {self._home}/job.sh ] || {{ echo none - 0; exit; }}; exec sh {self._home}/job.sh"
        done = self._checked(self._transport.run(f"{script} poll {self._home} {offset}", timeout_s=CALL_S))
        first, _, news = done.stdout.partition(b"\n")
        state, rc, size = first.decode().split()
        return Poll(cast(State, state), int(rc) if rc.isdigit() else None, int(size), news)

    def stop(self) -> None:
        """End it with everything that it started; done twice, it does no harm."""
        if self.state() != "none":
            patiently(lambda: self._script(f"stop {self._home}", START_S), patience_s=self._patience_s)

    def errors(self, last_bytes: int = 2000) -> str:
        """The end of what it said beside its lines; empty where it said nothing."""
        script = f"tail -c {last_bytes} {self._home}/{ERRORS} 2>/dev/null || true"
        done = patiently(lambda: self._transport.run(script, timeout_s=CALL_S), patience_s=self._patience_s)
        return done.stdout.decode(errors="replace").strip()

    def lines(self, copy: Path, *, stall_s: float, poll_s: float = 2.0) -> Iterator[str]:
        """Every whole line of out.jsonl from the first on, as they come, until the job has ended; first into `copy`.

        A job that died is started again. `stall_s` without a new line while the device can be reached: it is stopped,
        and that is an MpaError. The exit status is that of `poll`, what it complained about in `errors`.
        """
        offset, still_s, restarts = _cut_torn_line(copy), 0.0, 0
        if offset:
            yield from _split(copy.read_bytes())
        while True:
            poll = self.poll(offset)
            fresh = poll.news[: poll.news.rfind(b"\n") + 1]
            if fresh:
                _append(copy, fresh)
                offset, still_s, restarts = offset + len(fresh), 0.0, 0
                yield from _split(fresh)
                continue
            if poll.state == "ended":
                return
            if poll.state != "running":
                restarts += 1
                self._again(copy, restarts)
            elif still_s > stall_s:
                self._give_up(stall_s)
            # only waits count, so that neither a cut link nor a clock that is set can end a job
            time.sleep(poll_s)
            still_s += poll_s

    def _again(self, copy: Path, restarts: int) -> None:
        """Start what died without a word of its end."""
        where = self._transport.name
        if restarts > MOST_RESTARTS:
            raise MpaError(
                f"the job on {where} was killed {restarts} times ({self._last_error()}): "
                "see whether the device runs out of memory or power, then give the same command again"
            )
        say(f"the job on {where} was killed, or the device restarted: it goes on with what is left")
        script = f"cat {self._home}/command"
        done = patiently(lambda: self._transport.run(script, timeout_s=CALL_S), patience_s=self._patience_s)
        self.start(self._checked(done).stdout.decode().removesuffix("\n"), copy)

    def _give_up(self, stall_s: float) -> None:
        last = self._last_error()
        self.stop()
        raise MpaError(
            f"the job on {self._transport.name} gave no answer for {stall_s:.0f} s and was stopped ({last}): "
            "give the same command again, it goes on with what is left"
        )

    def _last_error(self) -> str:
        lines = self.errors().splitlines()
        return lines[-1][:200] if lines else "without a message"

    def _script(self, words: str, timeout_s: float) -> Done:
        return self._checked(self._transport.run(f"exec sh {self._home}/job.sh {words}", timeout_s=timeout_s))

    def _checked(self, done: Done) -> Done:
        if done.rc:
            refused(self._transport.name, f"keep a job in {self.folder}", done)
        return done


def _cut_torn_line(copy: Path) -> int:
    """Take away what a kill left of a line; the bytes that stay. The folder is made."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    if not copy.is_file():
        return 0
    content = copy.read_bytes()
    size = content.rfind(b"\n") + 1
    if size < len(content):
        os.truncate(copy, size)
    return size


def _split(whole: bytes) -> list[str]:
    # not splitlines(): an answer may hold U+2028 and its like
    return whole.decode(errors="replace").split("\n")[:-1]


def _append(copy: Path, content: bytes) -> None:
    with copy.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
