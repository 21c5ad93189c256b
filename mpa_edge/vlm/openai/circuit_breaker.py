"""When a server may be asked: pauses that it wants, and a breaker, so that a dead one costs one time-out, not many.

After some failures in a row nobody asks any more; then one request at a time is a probe. Its success opens the way for
all, and after `wait_s` without one the server counts as down for good.
Pattern: Michael Nygard, "Release It!", circuit breaker.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from mpa_edge.progress import say

FAILURES_IN_A_ROW = 5
FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0
LOOK_EVERY_S = 0.2


def backoff_s(attempt: int, chance: Callable[[], float] = random.random) -> float:
    """Wait before the next attempt, full jitter: anything up to a bound that doubles.

    Source: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    >>> backoff_s(0, lambda: 1.0), backoff_s(3, lambda: 0.5), backoff_s(99, lambda: 1.0)
    (1.0, 4.0, 60.0)
    """
    return chance() * min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt, 30))


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); None where it says nothing usable.

    >>> retry_after_s("2.5"), retry_after_s("soon"), retry_after_s("-1"), retry_after_s("nan")
    (2.5, None, None, None)
    >>> retry_after_s("Wed, 01 Jan 2025 00:00:10 GMT", datetime(2025, 1, 1, tzinfo=UTC))
    10.0
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        seconds = max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
    return seconds if 0.0 <= seconds < float("inf") else None


@dataclass(frozen=True)
class Pass:
    """Leave to ask once; must be given back with `done`."""

    probe: bool
    """The only one that may ask now."""


class Gate:
    """Lets requests through while the server lives. One event loop; `clock` is for tests."""

    def __init__(self, wait_s: float, probe_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._wait_s, self._probe_s, self._clock = wait_s, probe_s, clock
        self._in_a_row = 0
        self._not_before = 0.0
        self._down_since: float | None = None
        self._probing = False

    @property
    def given_up(self) -> bool:
        """Whether the server was away for longer than anybody waits."""
        return self._down_since is not None and self._clock() - self._down_since >= self._wait_s

    def give_up(self) -> None:
        """Nobody needs to ask any more."""
        self._down_since = float("-inf")

    async def enter(self) -> Pass | None:
        """Wait until asking makes sense; None where the server is down for good."""
        while True:
            if self.given_up and not self._probing:
                return None
            left_s = self._not_before - self._clock()
            if left_s <= 0 and self._down_since is None:
                return Pass(probe=False)
            if left_s <= 0 and not self._probing:
                self._probing = True
                return Pass(probe=True)
            await asyncio.sleep(min(max(left_s, 0.01), LOOK_EVERY_S))

    def done(self, leave: Pass, alive: bool | None, why: str = "") -> None:
        """Give a pass back. alive: the server answered; None: it does not tell (a rate limit, a cancelled request)."""
        if leave.probe:
            self._probing = False
        if alive:
            if self._down_since is not None:
                say("the teacher's server answers again")
            self._in_a_row, self._down_since = 0, None
        elif alive is False:
            self._in_a_row += 1
            self._close(leave, why)

    def pause(self, seconds: float) -> None:
        """Ask nothing for a while: the server wants it so."""
        self._not_before = max(self._not_before, self._clock() + seconds)

    def _close(self, leave: Pass, why: str) -> None:
        if self._down_since is None and self._in_a_row >= FAILURES_IN_A_ROW:
            self._down_since = self._clock()
            say(
                f"the teacher's server failed {self._in_a_row} times in a row ({why}): "
                f"looking every {self._probe_s:g} s whether it is back, for {self._wait_s:g} s"
            )
            self.pause(self._probe_s)
        elif leave.probe:
            self.pause(self._probe_s)
