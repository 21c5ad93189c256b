"""The interface of an engine: a job names the shards to do and the worker that does them.

An engine does not know what is in a shard. Every engine calls the same worker, so the files of a run are the same
bytes whichever engine wrote them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from mpa_edge.config.recipe import EngineConfig


@dataclass(frozen=True)
class Engine:
    """The engine that the user chose: `--engine` and `--ray-address`."""

    name: Literal["local", "ray"] = "local"
    """local: one shard after the other in this process."""
    address: str | None = None
    """Address of a running Ray cluster; None: start one on this machine for as long as the stage runs."""


LOCAL = Engine()


@dataclass(frozen=True)
class Facts:
    """What the workers of a job used; goes into the manifest."""

    used: dict[str, str] = field(default_factory=dict)
    """Device and library settings."""
    peak_rss_bytes: int = 0
    """Of the worker that took the most memory."""


def merged(one: Facts, other: Facts) -> Facts:
    """Facts of two workers as one: the first one's device, the larger memory."""
    return Facts(one.used or other.used, max(one.peak_rss_bytes, other.peak_rss_bytes))


class Worker(ABC):
    """Does shards with one model. It can be pickled until its model is loaded."""

    @abstractmethod
    def load(self) -> None:
        """Load the model."""

    @abstractmethod
    def do(self, shard: int, item: Any, images: Any = None) -> None:
        """Write the files of a shard; they are complete when this returns.

        `item` and `images` are what `item` and `read_ahead` returned; images None: the worker opens them itself.
        """

    @abstractmethod
    def facts(self) -> Facts:
        """What this process used so far."""

    @abstractmethod
    def close(self) -> None:
        """Free the model."""

    def item(self, _shard: int) -> Any:
        """What `do` needs to know of a shard besides its number. Small, because Ray keeps it for every shard."""
        return None

    # The rest is for the Ray engine. `inputs`, `must_see` and `portable` are called in the process that the user
    # started, the others on any machine of the cluster.

    def inputs(self, _shard: int) -> Sequence[str]:
        """Files of the run folder that `do` reads, as paths inside it."""
        return ()

    @abstractmethod
    def must_see(self) -> Sequence[Path]:
        """Files that every machine must be able to read, such as one of the images."""

    @abstractmethod
    def portable(self) -> Self:
        """A copy with absolute paths and nothing loaded, to be pickled for other processes."""

    @abstractmethod
    def moved(self, folder: Path) -> Self:
        """A copy that works in another run folder."""

    @abstractmethod
    def read_ahead(self, shard: int, item: Any, budget_bytes: int) -> Any:
        """The decoded images of a shard, as many as fit; called in a process without a model."""

    @abstractmethod
    def is_done(self, shard: int) -> bool:
        """Whether the files of a shard are complete: another worker may have written them before it died."""

    @abstractmethod
    def files(self, shard: int) -> list[str]:
        """The files that `do` writes, as paths inside the run folder, in the order in which it writes them."""


@dataclass(frozen=True)
class Job:
    """One pass over the shards of a stage."""

    title: str
    """Shown beside the progress bar."""
    worker: Worker
    """Not loaded; the engine loads it."""
    folder: Path
    """The stage folder. A shard that was set aside leaves its `poisoned-*.json` here."""
    sizes: Mapping[int, int]
    """Number of each shard of the pass -> its share of the progress bar (images, or 1)."""
    todo: Sequence[int]
    """Numbers of the shards that are not done."""
    config: EngineConfig = field(default_factory=EngineConfig)
    """The recipe's `engine` section."""

    @property
    def units(self) -> int:
        """Length of the progress bar."""
        return sum(self.sizes.values())

    @property
    def units_done(self) -> int:
        """Where the progress bar starts: the share of the shards that are done."""
        return self.units - sum(self.sizes[shard] for shard in self.todo)
