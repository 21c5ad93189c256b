"""A cut link is waited for: the work on the device goes on meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from mpa_edge.bench.transports import LinkError
from mpa_edge.progress import say

T = TypeVar("T")
PATIENCE_S = 600.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0


def patiently(action: Callable[[], T], *, patience_s: float = PATIENCE_S) -> T:
    """Do it again after a LinkError, with growing waits, for `patience_s`; then the last LinkError is raised.

    Time is counted by the monotonic clock: setting the date does not matter.
    """
    deadline, wait_s = time.monotonic() + patience_s, FIRST_WAIT_S
    while True:
        try:
            return action()
        except LinkError as error:
            if time.monotonic() + wait_s > deadline:
                raise
            say(f"{error}; trying again in {wait_s:.0f} s")
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
