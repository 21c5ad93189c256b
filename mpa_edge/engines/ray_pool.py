"""What runs inside a Ray cluster: Ray Data over the shards, a stage that reads pictures ahead, a pool of actors.

    blocks of shards -> readers (open pictures, on CPUs) -> actors (one model each, write the parts) -> counts

A block is what one task of an actor takes: one shard, or several where there are a great many.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import threading
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Datasource, ReadTask
from ray.data.block import BlockMetadata

from mpa_edge import __version__
from mpa_edge.engines import Worker
from mpa_edge.engines.ray_ledger import BEAT_S
from mpa_edge.engines.retries import AT_ONCE, reason_of
from mpa_edge.errors import MpaError

EXIT_CODE = 70
RETRIES_IN_PLACE = 1
Read = Callable[[int, Any, int], Any]
Files = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Plan:
    """How a job is laid over a cluster."""

    actors: int
    """Models at once."""
    gpus: float
    """Of one actor."""
    cpus: float
    """Of one actor."""
    readers: int
    """Actors that read ahead."""
    ahead_bytes: int
    """Pixels that one shard may have read ahead; the rest is read by the actor."""


@dataclass(frozen=True)
class Sent:
    """What the actors are told."""

    make: Callable[..., Worker]
    """Loads the model."""
    read: Read | None
    """Reads ahead."""
    sign: tuple[Path, bytes]
    """A file of the stage folder and what is in it: who sees it sees the folder, and that it is still the same work."""
    sees: tuple[Path, ...]
    """What every machine must see besides."""
    far: bool
    """Whether there is a machine that does not see the run folder: what is needed of it travels with each shard."""
    version: str
    """Of mpa-edge where the job was made."""


def packed(shards: Iterable[tuple[int, Any]]) -> bytes:
    """Number of each shard of one block, and what travels with it; small enough to keep for all shards.

    >>> unpacked(packed([(3, (["a.png"], ()))]))
    [(3, (['a.png'], ()))]
    """
    return zlib.compress(pickle.dumps(list(shards)), 1)


def unpacked(data: bytes) -> list[tuple[int, Any]]:
    """The same again."""
    return list(pickle.loads(zlib.decompress(data)))  # noqa: S301  (made by `packed` of this program)


def read_block(group: Any, index: int, read: Read | None, ahead_bytes: int) -> Iterator[pa.Table]:
    """One row a shard: what a worker must know of it, and its pictures. What cannot be read is left to the worker."""
    for shard, (entries, files) in unpacked(ray.get(group)[index]):
        given = None
        if read is not None:
            with suppress(Exception):
                given = read(shard, entries, ahead_bytes)
        cell = pickle.dumps((entries, given, files), protocol=5)
        yield pa.table({"shard": [shard], "given": pa.array([cell], pa.large_binary())})


class Shards(Datasource):
    """The blocks of a job as Ray Data reads them. A read task holds a reference and an index, no names."""

    def __init__(self, groups: list[tuple[Any, int]], read: Read | None, ahead_bytes: int) -> None:
        """`groups`: reference to a list of packed blocks, and how many there are in it."""
        super().__init__()
        self._blocks = [(group, i) for group, n in groups for i in range(n)]
        self._read, self._ahead = read, ahead_bytes

    def __len__(self) -> int:
        return len(self._blocks)

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known before the pictures are open."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One for each block."""
        about = BlockMetadata(num_rows=None, size_bytes=self._ahead, input_files=None, exec_stats=None)
        return [ReadTask(partial(read_block, group, i, self._read, self._ahead), about) for group, i in self._blocks]


class Coordinator:
    """Runs Ray Data inside the cluster; ended from outside where nothing moves any more."""

    def run(self, groups: list[tuple[Any, int]], sent: Sent, plan: Plan, ledger: Any) -> None:
        """All blocks once through the pool; what became of each shard the ledger knows."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = max(plan.ahead_bytes, 16_000_000)
        context.target_min_block_size = 1
        context.max_errored_blocks = -1  # a block that is lost is found missing, and done in another round
        source = Shards(groups, sent.read, plan.ahead_bytes)
        # readers are actors, too: Ray ends idle workers after a second, and a fresh one takes seconds to start
        rows = ray.data.read_datasource(
            source, override_num_blocks=len(source), num_cpus=0, compute=ActorPoolStrategy(size=plan.readers)
        ).map_batches(
            ShardActor,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=plan.cpus,
            num_gpus=plan.gpus,
            compute=ActorPoolStrategy(size=plan.actors),
            fn_constructor_args=(sent, ledger),
        )
        for _ in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            pass


class ShardActor:
    """One model. Says what it is at, tries a failed shard once more, and then once in a fresh process."""

    def __init__(self, sent: Sent, ledger: Any) -> None:
        self._sent, self._ledger, self._name = sent, ledger, uuid.uuid4().hex
        self._worker: Worker | None = None
        self._far: Path | None = None  # a run folder of our own, where the true one is out of sight
        self._ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()
        self._guarded(self._load)
        ray.get(ledger.ready.remote(self._name))

    def _beat(self) -> None:
        while True:
            self._ledger.beat.remote(self._name)
            if self._ended.wait(BEAT_S):
                return

    def _guarded(self, work: Callable[[], object]) -> None:
        """Whatever ends the run goes to the ledger as a line: Ray would wrap it in a page."""
        try:
            work()
        except Exception as error:
            text = str(error) if isinstance(error, MpaError) else _loading_failed(error)
            ray.get(self._ledger.fatal.remote(text))
            self._worker = None

    def _load(self) -> None:
        check_version(self._sent)
        if self._sent.far and not is_file(self._sent.sign[0]):
            self._far = Path(tempfile.mkdtemp(prefix="mpa-edge-"))
        else:
            check_same(self._sent)
        self._worker = self._sent.make(*filter(None, [self._far]))

    def __call__(self, block: pa.Table) -> pa.Table:
        """Each shard of a block; nothing comes back but their number."""
        shards: list[Any] = block["shard"].to_pylist()
        for shard, cell in zip(shards, block["given"], strict=True):
            if self._worker is not None:
                self._guarded(partial(self._do, self._worker, shard, cell))
        return pa.table({"shards": [len(block)]})

    def _do(self, worker: Worker, shard: int, cell: Any) -> None:
        entries, given, files = pickle.loads(cell.as_buffer())  # noqa: S301  (made by `read_block`)
        while ray.get(self._ledger.begin.remote(shard, self._name)):
            try:
                if self._far is None:
                    made = self._near(worker, shard, entries, given)
                else:
                    made = from_afar(self._far, worker, shard, entries, given, files)
            except AT_ONCE:
                raise
            except Exception as error:
                tries = ray.get(self._ledger.failed.remote(shard, self._name, reason_of(error)))
                if tries % (RETRIES_IN_PLACE + 1) == 0:
                    self._end()
            else:
                self._ledger.done.remote(shard, self._name, worker.facts(), made)
                return

    def _near(self, worker: Worker, shard: int, entries: Any, given: Any) -> Files:
        """Into the run folder itself."""
        check_same(self._sent)
        if not worker.is_done(shard):
            worker.do(shard, entries, given)
        return ()

    def _end(self) -> None:
        """A GPU in disorder, or a leak: the next try is in a fresh process, which Ray starts."""
        self._ended.set()
        ray.get(self._ledger.leave.remote(self._name))
        os._exit(EXIT_CODE)


def from_afar(folder: Path, worker: Worker, shard: int, entries: Any, given: Any, files: Files) -> Files:
    """The files of a shard, made in a folder that holds nothing else."""
    try:
        for name, data in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        for name in worker.files(shard):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        worker.do(shard, entries, given)
        return tuple((name, (folder / name).read_bytes()) for name in worker.files(shard))
    finally:
        for path in folder.iterdir():
            shutil.rmtree(path, ignore_errors=True)


def is_file(path: Path) -> bool:
    """Whether this machine sees a file."""
    return path.is_file()


def check_version(sent: Sent) -> None:
    """Raise MpaError where this machine has another mpa-edge, or does not see what it must."""
    if sent.version != __version__:
        raise MpaError(f"a machine of the Ray cluster has mpa-edge {__version__}, not {sent.version}: install the same")
    for path in sent.sees:
        if not path.exists():
            raise out_of_sight(path)


def check_same(sent: Sent) -> None:
    """Raise MpaError where this machine does not see the run folder, or another run has begun in it."""
    path, content = sent.sign
    if not is_file(path):
        raise out_of_sight(path.parent)
    if path.read_bytes() != content:
        raise MpaError(f"{path.parent} was begun anew by another run: wait for that one, or choose another --out")


def out_of_sight(path: Path) -> MpaError:
    """The error of a machine that cannot do its share."""
    return MpaError(
        f"{os.uname().nodename} does not see {path}: put it where all machines of the Ray cluster have it under the "
        f"same path"
    )


def _loading_failed(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "an actor ran out of memory: give it a larger machine, or a smaller batch_size in the recipe"
    return f"an actor could not start ({reason_of(error)}): mend the cause and run the same command again"
