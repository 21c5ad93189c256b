"""What goes on in a Ray cluster, kept by one small actor: tries of each shard, who is at work, what is finished.

Its memory is that of the shards at work, not of all shards: what is finished is handed on and forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from mpa_edge.engines import Facts
from mpa_edge.engines.retries import tries_line

BEAT_S = 1.0
ALIVE_S = 8.0
DIED = "its worker died (killed, crashed, or out of memory)"
Kind = Literal["done", "aside", "fatal"]


@dataclass(frozen=True)
class Event:
    """One thing that the process which waits must hear of."""

    kind: Kind
    """done: written; aside: failed too often; fatal: the user must mend something."""
    shard: int = -1
    """Its number."""
    tries: int = 0
    """How often it failed."""
    text: str = ""
    """Why."""
    facts: Facts = field(default_factory=Facts)
    """What the worker used."""
    files: tuple[tuple[str, bytes], ...] = ()
    """Path in the run folder -> content, where the worker does not see that folder."""


@dataclass(frozen=True)
class Seen:
    """What there is to show at a moment."""

    events: tuple[Event, ...]
    """Since the last look."""
    workers: int
    """Actors that are alive, also those that load their model."""
    failed: int
    """Failed tries so far."""
    slowest: tuple[int, float] | None
    """The shard that has been at work for longest, and for how long, seconds."""
    idle_s: float
    """Seconds since a living actor was last loading its model or at work; before the first one, since the start."""
    missing: int = 0
    """Actors that lived and do not any more; one before the first. A shard of theirs may never come."""
    met: bool = True
    """Whether there ever was an actor."""

    def line(self) -> str:
        """For the screen.

        >>> Seen((), 2, 1, (12, 34.4), 0.0).line()
        '2 actors, 1 failed try, slowest: shard 12 for 34 s'
        """
        parts = [f"{self.workers} actor{'s' * (self.workers != 1)}"]
        parts += [tries_line(self.failed)] if self.failed else []
        parts += [f"slowest: shard {self.slowest[0]} for {self.slowest[1]:.0f} s"] if self.slowest else []
        return ", ".join(parts)


@dataclass
class _Worker:
    beat: float
    busy: bool = True  # from its first beat on: it loads its model
    shard: int | None = None
    since: float = 0.0


@dataclass
class Ledger:
    """The methods are called by the actors (`join`, `beat`, `begin`, ...) and by the process that waits (`look`)."""

    tries_allowed: int
    """How often a shard may fail."""
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    _tries: dict[int, list[str]] = field(default_factory=dict)
    _workers: dict[str, _Worker] = field(default_factory=dict)
    _events: list[Event] = field(default_factory=list)
    _failed: int = 0
    _busy_at: float | None = None
    _most: int = 0

    def beat(self, worker: str) -> None:
        """An actor lives."""
        self._workers.setdefault(worker, _Worker(self.clock())).beat = self.clock()

    def ready(self, worker: str) -> None:
        """An actor has loaded its model, or has nothing to do."""
        self.beat(worker)
        self._workers[worker].busy, self._workers[worker].shard = False, None

    def begin(self, shard: int, worker: str) -> bool:
        """Whether an actor may try a shard now; False where it has failed too often, which is told the one who waits.

        A try that began and neither failed nor ended is one whose worker died.
        """
        before = self._tries.setdefault(shard, [])
        if before and before[-1] == "":
            before[-1] = DIED
            self._failed += 1
        if len(before) >= self.tries_allowed:
            self._end(Event("aside", shard, len(before), before[-1]), worker)
            return False
        before.append("")
        self._bury(shard)
        self.beat(worker)
        one = self._workers[worker]
        one.busy, one.shard, one.since = True, shard, self.clock()
        return True

    def _bury(self, shard: int) -> None:
        """Whoever was at this shard is not any more."""
        self._workers = {name: one for name, one in self._workers.items() if one.shard != shard}

    def failed(self, shard: int, worker: str, reason: str) -> int:
        """A try failed; how many have so far."""
        tries = self._tries.setdefault(shard, [""])
        tries[-1] = reason
        self._failed += 1
        self.ready(worker)
        return len(tries)

    def leave(self, worker: str) -> None:
        """An actor ends."""
        self._workers.pop(worker, None)

    def done(self, shard: int, worker: str, facts: Facts, files: tuple[tuple[str, bytes], ...] = ()) -> None:
        """A shard is written."""
        self._end(Event("done", shard, facts=facts, files=files), worker)

    def _end(self, event: Event, worker: str) -> None:
        self._tries.pop(event.shard, None)
        self._events.append(event)
        self.ready(worker)

    def fatal(self, text: str) -> None:
        """Something that the user has to mend."""
        self._events.append(Event("fatal", text=text))

    def look(self) -> Seen:
        """What is new, and how it stands."""
        now = self.clock()
        self._workers = {name: one for name, one in self._workers.items() if now - one.beat < ALIVE_S}
        self._most = max(self._most, len(self._workers))
        at_work = [(one.since, one.shard) for one in self._workers.values() if one.shard is not None]
        if self._busy_at is None or any(one.busy for one in self._workers.values()):
            self._busy_at = now
        events, self._events = tuple(self._events), []
        since, shard = min(at_work, default=(now, None))
        slowest = None if shard is None else (shard, now - since)
        missing = self._most - len(self._workers) if self._most else 1
        return Seen(events, len(self._workers), self._failed, slowest, now - self._busy_at, missing, self._most > 0)
