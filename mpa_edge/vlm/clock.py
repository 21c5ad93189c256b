"""Where the time of a request goes."""

from __future__ import annotations

import time


class Clock:
    """Seconds since it was made, cut into laps that add up to the total."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self.last = self.last, time.perf_counter()
        return self.last - before

    def total(self) -> float:
        """Seconds from the start to the last lap."""
        return self.last - self.start
