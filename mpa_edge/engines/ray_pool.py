"""What runs inside a Ray cluster: Ray Data over the shards, with readers that decode images and actors with a model.

    blocks of shards -> readers (decode images, on CPUs) -> actors (one model each, write the parts) -> counts

A block is what one task of an actor takes: one shard, or several where there are very many.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator
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
from mpa_edge.engines.job import Worker
from mpa_edge.engines.ray_ledger import BEAT_S
from mpa_edge.engines.retries import AT_ONCE, reason_of
from mpa_edge.errors import MpaError
from mpa_edge.runs.files import make_folder, write_bytes
from mpa_edge.runs.paths import remove

EXIT_CODE = 70
TRIES_IN_PLACE = 2
Files = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class ActorSpec:
    """What every actor is given."""

    worker: Worker
    """Not loaded."""
    mark: tuple[Path, bytes]
    """A file of the stage folder and its content: a machine with the same file sees the folder of the same work."""
    must_see: tuple[Path, ...]
    """Further files that every machine must be able to read."""
    remote_files: bool
    """Whether a machine does not see the run folder: then each shard carries the files that it needs, and returns what
    was written."""
    version: str
    """Version of mpa-edge in the process that started the job."""


def read_block(group: Any, index: int, worker: Worker, ahead_bytes: int) -> Iterator[pa.Table]:
    """One row for each shard, with its images. What cannot be read here is left to the actor."""
    block = pickle.loads(zlib.decompress(ray.get(group)[index]))  # noqa: S301  (made by `Rounds._groups`)
    for shard, item, files in block:
        images = None
        with suppress(Exception):
            images = worker.read_ahead(shard, item, ahead_bytes)
        cell = pickle.dumps((item, images, files), protocol=5)
        yield pa.table({"shard": [shard], "carried": pa.array([cell], pa.large_binary())})


class Shards(Datasource):
    """The blocks of a job as Ray Data reads them. A read task holds a reference and an index instead of names."""

    def __init__(self, groups: list[tuple[Any, int]], worker: Worker, ahead_bytes: int) -> None:
        """`groups`: (reference to a list of packed blocks, length of the list)."""
        super().__init__()
        self._blocks = [(group, i) for group, n in groups for i in range(n)]
        self._worker, self._ahead_bytes = worker, ahead_bytes

    def __len__(self) -> int:
        return len(self._blocks)

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known before the images are decoded."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One for each block."""
        about = BlockMetadata(num_rows=None, size_bytes=self._ahead_bytes, input_files=None, exec_stats=None)
        return [
            ReadTask(partial(read_block, group, i, self._worker, self._ahead_bytes), about) for group, i in self._blocks
        ]


class Coordinator:
    """Runs Ray Data inside the cluster. It is killed from outside when a round makes no progress."""

    def run(
        self,
        groups: list[tuple[Any, int]],
        spec: ActorSpec,
        ledger: Any,
        *,
        actors: int,
        gpus: float,
        cpus: float,
        readers: int,
        ahead_bytes: int,
    ) -> None:
        """Send all blocks through the pool once. The ledger knows what became of each shard.

        `gpus` and `cpus` are those of one of the `actors`, which have a model each; `readers` are actors that decode
        images ahead, `ahead_bytes` of pixels for one shard. Its actor decodes the others.
        """
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = max(ahead_bytes, 16_000_000)
        context.target_min_block_size = 1
        context.max_errored_blocks = -1  # shards of lost blocks are done in another round
        source = Shards(groups, spec.worker, ahead_bytes)
        # readers are actors too: Ray ends idle workers after a second, and a new one takes seconds to start
        rows = ray.data.read_datasource(
            source, override_num_blocks=len(source), num_cpus=0, compute=ActorPoolStrategy(size=readers)
        ).map_batches(
            ShardActor,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=cpus,
            num_gpus=gpus,
            compute=ActorPoolStrategy(size=actors),
            fn_constructor_args=(spec, ledger),
        )
        for _ in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            pass


class ShardActor:
    """One model. Tells the ledger what it does, tries a failed shard once more here, and then in a new process."""

    def __init__(self, spec: ActorSpec, ledger: Any) -> None:
        self._spec, self._ledger, self._name = spec, ledger, uuid.uuid4().hex
        self._worker: Worker | None = None
        self._own_folder: Path | None = None  # a run folder on this machine, where the real one cannot be seen
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
        """Tell the ledger in one line about what ends the run: Ray would wrap it in a page of traceback."""
        try:
            work()
        except Exception as error:
            if isinstance(error, MpaError):
                text = str(error)
            elif isinstance(error, MemoryError):
                text = "an actor ran out of memory: use larger machines, or a smaller batch_size in the recipe"
            else:
                text = f"an actor could not start ({reason_of(error)}): fix the cause and rerun"
            ray.get(self._ledger.fatal.remote(text))
            self._worker = None

    def _load(self) -> None:
        spec, worker = self._spec, self._spec.worker
        if spec.version != __version__:
            raise MpaError(
                f"a machine of the Ray cluster has mpa-edge {__version__}, not {spec.version}: install the same version"
            )
        for path in spec.must_see:
            if not path.exists():
                raise out_of_sight(path)
        if spec.remote_files and not spec.mark[0].is_file():
            self._own_folder = Path(tempfile.mkdtemp(prefix="mpa-edge-"))
            worker = worker.moved(self._own_folder)
        else:
            check_same(spec)
        worker.load()
        self._worker = worker

    def __call__(self, block: pa.Table) -> pa.Table:
        """Do each shard of a block; returns nothing but their number."""
        shards: list[Any] = block["shard"].to_pylist()
        for shard, cell in zip(shards, block["carried"], strict=True):
            if self._worker is not None:
                self._guarded(partial(self._do, self._worker, shard, cell))
        return pa.table({"shards": [len(block)]})

    def _do(self, worker: Worker, shard: int, cell: Any) -> None:
        item, images, files = pickle.loads(cell.as_buffer())  # noqa: S301  (made by `read_block`)
        while ray.get(self._ledger.begin.remote(shard, self._name)):
            try:
                if self._own_folder is not None:
                    made = do_remotely(self._own_folder, worker, shard, item, images, files)
                else:
                    check_same(self._spec)
                    if not worker.is_done(shard):
                        worker.do(shard, item, images)
                    made = ()
            except AT_ONCE:
                raise
            except Exception as error:
                tries = ray.get(self._ledger.failed.remote(shard, self._name, reason_of(error)))
                if tries % TRIES_IN_PLACE == 0:
                    # the GPU may be in a bad state, or memory may leak: the next try is in a new process of Ray's
                    self._ended.set()
                    ray.get(self._ledger.leave.remote(self._name))
                    os._exit(EXIT_CODE)
            else:
                self._ledger.done.remote(shard, self._name, worker.facts(), made)
                return


def do_remotely(folder: Path, worker: Worker, shard: int, item: Any, images: Any, files: Files) -> Files:
    """Do a shard in a folder that holds nothing but the `files` that it needs; returns the files that were written."""
    try:
        for name, data in files:
            write_bytes(make_folder((folder / name).parent) / Path(name).name, data)
        for name in worker.files(shard):
            make_folder((folder / name).parent)
        worker.do(shard, item, images)
        return tuple((name, (folder / name).read_bytes()) for name in worker.files(shard))
    finally:
        for path in folder.iterdir():
            remove(path, quietly=True)


def check_same(spec: ActorSpec) -> None:
    """Raise MpaError where this machine does not see the run folder, or another run has started over in it."""
    path, content = spec.mark
    if not path.is_file():
        raise out_of_sight(path.parent)
    if path.read_bytes() != content:
        raise MpaError(f"another run has started over in {path.parent}: wait until it ends, or choose another --out")


def out_of_sight(path: Path) -> MpaError:
    """The error of a machine that does not see a path of the run."""
    return MpaError(
        f"{os.uname().nodename} does not see {path}: put it where all machines of the Ray cluster have it under the "
        f"same path"
    )
