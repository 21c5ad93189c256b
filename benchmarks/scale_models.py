"""Models that answer from a function, with the latencies of real ones made shorter; for scale.py.

A real teacher is taken to need 80 ms for a question that it writes and 20 ms for a short answer (a 7B model that
answers in large batches on one GPU); `SPEEDUP` times less is slept here. Every hundredth batch takes five times as
long, the others vary as a log-normal does. What is slept depends on what is asked, not on chance.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpa_edge.types import Reply, Request

LOG_FOLDER = "MPA_SCALE_LOG"
WRITE_S, ANSWER_S, SPEEDUP = 0.080, 0.020, 1000.0
SPREAD, STRAGGLERS, STRAGGLER = 0.25, 100, 5.0
WRITES_TOKENS = 20  # who may say more than this is asked to write a question


class Scripted:
    """Asks for the number of an image and knows it; the student is wrong about every third one."""

    def __init__(self, reference: str, *, name: str, **_: Any) -> None:
        self.name = name

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request, after as long as a batch takes."""
        replies = [Reply(self._say(request), "stop", 3) for request in requests]
        if requests:
            writes = requests[0].max_new_tokens > WRITES_TOKENS
            self._note(len(requests), writes)
            time.sleep(batch_s(len(requests), writes, replies[0].text))
        return replies

    def _say(self, request: Request) -> str:
        red, green, blue = request.image.getpixel((0, 0))  # type: ignore[misc]
        number = red + 256 * green + 65536 * blue
        if request.max_new_tokens > WRITES_TOKENS:
            return f"Question: Which number has image {number}, asked {request.seed % 997}? Answer: {number}"
        return str(number if self.name == "teacher" or number % 3 else number + 1)

    def _note(self, n: int, writes: bool) -> None:
        """One line a batch: when, who, what, how many. Whole lines of one process are never torn."""
        if LOG_FOLDER in os.environ:
            kind = "wrote" if writes else "answered"
            with (Path(os.environ[LOG_FOLDER]) / str(os.getpid())).open("a") as file:
                file.write(f"{time.time():.3f} {self.name} {kind} {n}\n")

    def close(self) -> None:
        """Nothing to free."""


def batch_s(n: int, writes: bool, seed: str) -> float:
    """Seconds that a batch of n requests takes here."""
    dice = random.Random(seed)
    factor = math.exp(dice.gauss(0.0, SPREAD)) * (STRAGGLER if dice.randrange(STRAGGLERS) == 0 else 1.0)
    return n * (WRITE_S if writes else ANSWER_S) * factor / SPEEDUP
