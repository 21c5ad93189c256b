"""The state of a round, kept by one small actor of the cluster: tries of each shard, live actors, finished shards.

It grows with the shards in progress, not with all shards: what is finished is reported once and forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from mpa_edge.engines.job import Facts
from mpa_edge.engines.retries import failed_tries

BEAT_S = 1.0
ALIVE_S = 8.0
DIED = "its worker died (killed, crashed, or out of memory)"


@dataclass(frozen=True)
class Event:
    """Something to report to the waiting process."""

    kind: Literal["done", "aside", "fatal"]
    """done: written; aside: failed too often; fatal: the user must fix something."""
    shard: int = -1
    """Number of the shard."""
    tries: int = 0
    """How often it failed."""
    text: str = ""
    """Why."""
    facts: Facts = field(default_factory=Facts)
    """What its worker used."""
    files: tuple[tuple[str, bytes], ...] = ()
    """(path in the run folder, content), where the worker does not see that folder."""


@dataclass(frozen=True)
class Status:
    """The state of a round."""

    events: tuple[Event, ...]
    """Since the last poll."""
    line: str
    """For the screen: live actors, failed tries so far, and the shard that has been in progress for longest."""
    idle_s: float
    """Seconds since a live actor last loaded its model or worked; before the first one, since the start."""
    missing: int
    """Actors that died, whose shards may never come; 1 before the first one lives."""
    met: bool
    """Whether any actor has started."""


@dataclass
class _Actor:
    beat: float
    busy: bool = True  # from its first beat on: it loads its model
    shard: int | None = None
    since: float = 0.0


@dataclass
class Ledger:
    """Called by the actors (`beat`, `begin`, `done`, ...) and by the process that waits (`poll`)."""

    tries_allowed: int
    """How often a shard may fail."""
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    _tries: dict[int, list[str]] = field(default_factory=dict)
    _actors: dict[str, _Actor] = field(default_factory=dict)
    _events: list[Event] = field(default_factory=list)
    _failed: int = 0
    _busy_at: float | None = None
    _most: int = 0

    def beat(self, actor: str) -> None:
        """An actor is alive."""
        self._actors.setdefault(actor, _Actor(self.clock())).beat = self.clock()

    def ready(self, actor: str) -> None:
        """An actor has loaded its model, or has nothing to do."""
        self.beat(actor)
        self._actors[actor].busy, self._actors[actor].shard = False, None

    def begin(self, shard: int, actor: str) -> bool:
        """Whether an actor may try a shard; False where it failed too often, and then the shard is reported as aside.

        A try that began and neither failed nor was done is one whose actor died.
        """
        before = self._tries.setdefault(shard, [])
        if before and before[-1] == "":
            before[-1] = DIED
            self._failed += 1
        if len(before) >= self.tries_allowed:
            self._end(Event("aside", shard, len(before), before[-1]), actor)
            return False
        before.append("")
        # an actor that was at this shard is dead
        self._actors = {name: one for name, one in self._actors.items() if one.shard != shard}
        self.beat(actor)
        one = self._actors[actor]
        one.busy, one.shard, one.since = True, shard, self.clock()
        return True

    def failed(self, shard: int, actor: str, reason: str) -> int:
        """A try failed. Returns how many tries of the shard did."""
        tries = self._tries.setdefault(shard, [""])
        tries[-1] = reason
        self._failed += 1
        self.ready(actor)
        return len(tries)

    def leave(self, actor: str) -> None:
        """An actor ends."""
        self._actors.pop(actor, None)

    def done(self, shard: int, actor: str, facts: Facts, files: tuple[tuple[str, bytes], ...] = ()) -> None:
        """A shard is written."""
        self._end(Event("done", shard, facts=facts, files=files), actor)

    def _end(self, event: Event, actor: str) -> None:
        self._tries.pop(event.shard, None)
        self._events.append(event)
        self.ready(actor)

    def fatal(self, text: str) -> None:
        """Something failed that only the user can fix."""
        self._events.append(Event("fatal", text=text))

    def poll(self) -> Status:
        """The events since the last call, and the state of the round."""
        now = self.clock()
        self._actors = {name: one for name, one in self._actors.items() if now - one.beat < ALIVE_S}
        self._most = max(self._most, len(self._actors))
        if self._busy_at is None or any(one.busy for one in self._actors.values()):
            self._busy_at = now
        events, self._events = tuple(self._events), []
        n = len(self._actors)
        parts = [f"{n} actor{'s' * (n != 1)}", failed_tries(self._failed)]
        if at_work := [(one.since, one.shard) for one in self._actors.values() if one.shard is not None]:
            since, shard = min(at_work)
            parts.append(f"slowest: shard {shard} for {now - since:.0f} s")
        line, missing = ", ".join(filter(None, parts)), self._most - n if self._most else 1
        return Status(events, line, now - self._busy_at, missing, self._most > 0)
