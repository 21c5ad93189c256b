"""A shard that fails: tried again, then set aside with its reason, until too many were.

What the user has to mend (`MpaError`) and a machine without memory end the run at once; everything else may be the
fault of one shard, or of one moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mpa_edge.engines import Job
from mpa_edge.errors import MpaError
from mpa_edge.progress import say
from mpa_edge.runs.files import read_json, write_json

AT_ONCE = (MpaError, MemoryError)
NAME = re.compile(r"poisoned-(\d{5,})\.json")
REASON_CHARS = 300


class Poisoned(BaseModel):
    """A shard that was set aside. The next run tries it again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: int
    """Its number."""
    tries: int
    """How often it failed."""
    reason: str
    """The last one's."""


def poisoned_path(folder: Path, shard: int) -> Path:
    """Where the reason of a shard that is set aside is written."""
    return folder / f"poisoned-{shard:05d}.json"


def poisoned(folder: Path) -> list[Poisoned]:
    """The shards of a stage folder that are set aside, by number; a damaged file still counts."""
    found = sorted(path for path in folder.glob("poisoned-*.json") if NAME.fullmatch(path.name))
    return [_read(path) for path in found]


def _read(path: Path) -> Poisoned:
    try:
        return Poisoned.model_validate(read_json(path))
    except ValidationError:
        shard = int(path.stem.partition("-")[2])
        return Poisoned(shard=shard, tries=0, reason="its reason cannot be read")


def forgive(folder: Path, shard: int) -> None:
    """A shard that is done, or tried again, is not set aside."""
    poisoned_path(folder, shard).unlink(missing_ok=True)


def reason_of(error: BaseException) -> str:
    """One line about an error.

    >>> reason_of(ValueError("no such\\n  token"))
    'ValueError: no such token'
    """
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:REASON_CHARS] if text else type(error).__name__


def tries_line(n: int) -> str:
    """For the screen.

    >>> tries_line(1), tries_line(2)
    ('1 failed try', '2 failed tries')
    """
    return f"{n} failed {'try' if n == 1 else 'tries'}"


def attempt(work: Callable[[], object]) -> str | None:
    """Do it once: None, or why it failed. What must end the run is raised."""
    try:
        work()
    except AT_ONCE:
        raise
    except Exception as error:  # a shard may fail in any way; it must not take the others with it
        return reason_of(error)
    return None


def allowed(total: int, budget: float) -> int:
    """How many of so many shards may be set aside: a share of them, at least one, never all.

    >>> allowed(1000, 0.01), allowed(10, 0.01), allowed(1, 0.01), allowed(1000, 0.0)
    (10, 1, 0, 0)
    """
    return min(max(1, int(budget * total)), total - 1) if budget else 0


class Budget:
    """Sets shards aside, and stops the run where they are too many."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._allowed = allowed(job.total, job.config.error_budget)
        self.aside: list[Poisoned] = []

    def set_aside(self, shard: int, tries: int, reason: str) -> None:
        """Write down why a shard failed. Raises MpaError where too many did."""
        one = Poisoned(shard=shard, tries=tries, reason=reason)
        write_json(poisoned_path(self._job.folder, shard), one)
        self.aside.append(one)
        say(
            f"{self._job.title}: shard {shard} is set aside after {tries} tries ({reason}); the next run tries it again"
        )
        if len(self.aside) > self._allowed:
            raise MpaError(
                f"{self._job.title}: {len(self.aside)} of {self._job.total} shards failed, more than "
                f"engine.error_budget allows; the last one: {reason}: mend the cause and run the same command again, "
                f"what is done is kept"
            )
