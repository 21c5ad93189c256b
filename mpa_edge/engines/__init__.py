"""Who runs which shard: this process, or the actors of a Ray cluster. What is in a shard is not known here.

An engine gets a `Job`: the numbers of the shards that are to do, and a way to make a `Worker`, which holds one model
and writes the files of a shard. Both engines call the same worker, so both leave the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mpa_edge.config.recipe import EngineConfig

if TYPE_CHECKING:
    from mpa_edge.engines.retries import Poisoned


@dataclass(frozen=True)
class Engine:
    """What a user chose: `--engine`, `--ray-address`."""

    name: Literal["local", "ray"] = "local"
    """local: shard after shard in this process."""
    address: str | None = None
    """Of a running Ray cluster; None: a small one is started here and ended with the stage."""


LOCAL = Engine()


class Worker(Protocol):
    """Holds one model; what it does to a shard is in the run folder when `do` returns."""

    def do(self, shard: int, entries: Any, given: Any) -> None:
        """Write the files of a shard. `given` is what `Job.read` made of its pictures, None where nobody read ahead."""
        ...

    def is_done(self, shard: int) -> bool:
        """Whether the files are there and whole: another worker may have written them before it died."""
        ...

    def files(self, shard: int) -> list[str]:
        """The files of a shard, as paths in the run folder, in the order in which they are written."""
        ...

    def facts(self) -> Facts:
        """What it used so far."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


@dataclass(frozen=True)
class Facts:
    """What the workers of a job used, for the manifest."""

    used: dict[str, str] = field(default_factory=dict)
    """Device and numbers."""
    peak_rss_bytes: int = 0
    """Of the largest one."""


@dataclass(frozen=True)
class Job:
    """The shards of one pass over a stage folder."""

    title: str
    """For the screen."""
    folder: Path
    """Where the parts are; a shard that is set aside leaves its `poisoned-*.json` here."""
    total: int
    """Shards of the whole pass; the error budget is a share of it."""
    todo: Sequence[int]
    """Numbers of those that are not done."""
    make: Callable[..., Worker]
    """Loads the model; can be pickled where the engine is not local. make(folder): with another run folder."""
    entries: Callable[[int], Any]
    """What a worker must be told of a shard besides its number; small, and can be pickled."""
    written: Callable[[int], object] = lambda _shard: None
    """Called in this process for each shard that is done."""
    read: Callable[[int, Any, int], Any] | None = None
    """(shard, entries, bytes it may hold) -> what a worker is given; can be pickled. None: workers read themselves."""
    weigh: Callable[[int], int] = lambda _shard: 1
    """Units of progress in a shard."""
    units: int | None = None
    """Units of progress in the whole pass; None: its shards."""
    needs: Callable[[int], Sequence[str]] = lambda _shard: ()
    """Files of the run folder that a worker reads for a shard, as paths in it."""
    sees: tuple[Path, ...] = ()
    """What every machine must see: a picture, for one."""
    config: EngineConfig = field(default_factory=EngineConfig)
    """The recipe's `engine` section."""

    @property
    def root(self) -> Path:
        """The run folder."""
        return self.folder.parent

    @property
    def units_done(self) -> int:
        """Units of progress that are behind us."""
        return (self.total if self.units is None else self.units) - sum(map(self.weigh, self.todo))


@dataclass(frozen=True)
class Outcome:
    """What came of a job."""

    poisoned: tuple[Poisoned, ...] = ()
    """Shards that were set aside."""
    facts: Facts = field(default_factory=Facts)
    """What the workers used."""


def merged(one: Facts, other: Facts) -> Facts:
    """Of two workers: the first one's device, the larger memory."""
    return Facts(one.used or other.used, max(one.peak_rss_bytes, other.peak_rss_bytes))
