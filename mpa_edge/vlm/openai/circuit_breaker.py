"""When a server may be asked: a circuit breaker, so that a dead server costs one time-out, not one for each request.

After some failures in a row requests are held back, and one at a time goes out as a probe. If a probe succeeds, all go
out again; after `wait_s` without a success the server counts as down for good.
Pattern: Michael Nygard, "Release It!", circuit breaker.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal

from mpa_edge.progress import say

FAILURES_IN_A_ROW = 5
FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0
LOOK_EVERY_S = 0.2
Permit = Literal["request", "probe"]
"""Permission to send one request. While a probe is on its way, no other request is sent."""


def backoff_s(attempt: int, chance: Callable[[], float] = random.random) -> float:
    """Wait before the next attempt, with full jitter: a random share of a bound that doubles.

    Source: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    >>> backoff_s(0, lambda: 1.0), backoff_s(3, lambda: 0.5), backoff_s(99, lambda: 1.0)
    (1.0, 4.0, 60.0)
    """
    return chance() * min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt, 30))


def retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date; None where it is missing or neither.

    >>> retry_after_s("2.5"), retry_after_s("soon"), retry_after_s("-1"), retry_after_s("nan")
    (2.5, None, None, None)
    >>> retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT")
    0.0
    """
    try:
        seconds = float(value or "")
    except ValueError:
        try:
            at = parsedate_to_datetime(value or "")
        except ValueError:
            return None
        seconds = max(0.0, at.replace(tzinfo=at.tzinfo or UTC).timestamp() - time.time())
    return seconds if 0.0 <= seconds < float("inf") else None


class CircuitBreaker:
    """Lets requests through while the server works. For one event loop; `clock` is for tests."""

    def __init__(self, wait_s: float, probe_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._wait_s, self._probe_s, self._clock = wait_s, probe_s, clock
        self._in_a_row = 0
        self._not_before = 0.0
        self._down_since: float | None = None
        self._probing = False

    def give_up(self) -> None:
        """Treat the server as down for good."""
        self._down_since = float("-inf")

    async def enter(self) -> Permit | None:
        """Wait for a permit, which must be given back with `done`. None where the server is down for good."""
        while True:
            down_since, now = self._down_since, self._clock()
            if down_since is not None and now - down_since >= self._wait_s and not self._probing:
                return None
            left_s = self._not_before - now
            if left_s <= 0 and down_since is None:
                return "request"
            if left_s <= 0 and not self._probing:
                self._probing = True
                return "probe"
            await asyncio.sleep(min(max(left_s, 0.01), LOOK_EVERY_S))

    def done(self, permit: Permit, alive: bool | None, why: str = "") -> None:
        """Give a permit back. `alive`: whether the server answered; None: unknown (a rate limit, a cancellation)."""
        if permit == "probe":
            self._probing = False
        if alive:
            if self._down_since is not None:
                say("the teacher's server answers again")
            self._in_a_row, self._down_since = 0, None
        elif alive is False:
            self._in_a_row += 1
            if self._down_since is None and self._in_a_row >= FAILURES_IN_A_ROW:
                self._down_since = self._clock()
                say(
                    f"the teacher's server failed {self._in_a_row} times in a row ({why}): "
                    f"retrying every {self._probe_s:g} s for {self._wait_s:g} s"
                )
                self.pause(self._probe_s)
            elif permit == "probe":
                self.pause(self._probe_s)

    def pause(self, seconds: float) -> None:
        """Hold all requests back for a while."""
        self._not_before = max(self._not_before, self._clock() + seconds)
