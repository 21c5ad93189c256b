"""Failing shards: a shard is tried again, then set aside with its reason; too many of them end the run.

An MpaError, which the user has to fix, and running out of memory end the run at once. Any other error may be caused by
one shard, or be gone at the next try.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mpa_edge.engines.job import Job
from mpa_edge.errors import MpaError
from mpa_edge.progress import say
from mpa_edge.runs.files import read_json, write_json
from mpa_edge.runs.log import redacted

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
    """Why the last try failed."""


def poisoned_path(folder: Path, shard: int) -> Path:
    """The file that says why a shard was set aside."""
    return folder / f"poisoned-{shard:05d}.json"


def poisoned(folder: Path) -> list[Poisoned]:
    """The shards of a stage folder that were set aside, by number; one with a damaged file counts too."""
    found = []
    for path in sorted(folder.glob("poisoned-*.json")):
        if match := NAME.fullmatch(path.name):
            try:
                found.append(Poisoned.model_validate(read_json(path)))
            except ValidationError:
                found.append(Poisoned(shard=int(match[1]), tries=0, reason="the file with the reason is damaged"))
    return found


def reason_of(error: BaseException) -> str:
    """One line about an error.

    >>> reason_of(ValueError("no such\\n  token"))
    'ValueError: no such token'
    """
    text = " ".join(redacted(str(error)).split())
    return f"{type(error).__name__}: {text}"[:REASON_CHARS] if text else type(error).__name__


def failed_tries(n: int) -> str:
    """How many tries failed, for the screen; nothing for none.

    >>> failed_tries(0), failed_tries(1), failed_tries(2)
    ('', '1 failed try', '2 failed tries')
    """
    return f"{n} failed {'try' if n == 1 else 'tries'}" if n else ""


class Budget:
    """Sets shards of a job aside, and ends the run when they are too many."""

    def __init__(self, job: Job) -> None:
        self._job, self.n_aside = job, 0

    def set_aside(self, shard: int, tries: int, reason: str) -> None:
        """Write down why a shard failed. Raises MpaError when too many did."""
        job, total = self._job, len(self._job.sizes)
        write_json(poisoned_path(job.folder, shard), Poisoned(shard=shard, tries=tries, reason=reason))
        self.n_aside += 1
        say(f"{job.title}: shard {shard} set aside after {tries} failed tries ({reason}); the next run tries it again")
        # a share of the shards, but at least one, and never all
        share = job.config.error_budget
        if self.n_aside > (min(max(1, int(share * total)), total - 1) if share else 0):
            raise MpaError(
                f"{job.title}: {self.n_aside} of {total} shards failed, more than engine.error_budget allows, the last "
                f"with {reason}: fix the cause and rerun; what is done is kept"
            )
