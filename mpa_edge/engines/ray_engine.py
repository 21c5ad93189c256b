"""The Ray engine: the shards of a job over the machines of a cluster.

`ray_pool` does the work with Ray Data; this module waits for it. A round is one data set over all shards that are not
done. Shards that a round loses (a machine went with its actors, and none can take their place) are done in the next
one; the files of the run folder say which are left.
"""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge import __version__
from mpa_edge.engines.job import Engine, Facts, Job, merged
from mpa_edge.engines.ray_cluster import CLIENT, ahead_bytes, block_size, connected, fit_actors
from mpa_edge.engines.ray_ledger import Ledger
from mpa_edge.engines.retries import Budget, poisoned_path
from mpa_edge.errors import MpaError
from mpa_edge.progress import Advance, progress, say
from mpa_edge.runs.files import make_folder, write_bytes
from mpa_edge.runs.manifest import INPUTS
from mpa_edge.runs.paths import inside, remove

if TYPE_CHECKING:
    from mpa_edge.engines.ray_pool import ActorSpec

GROUP = 64  # blocks behind one object reference
POLL_S = 0.5
POLL_TIMEOUT_S = 60.0
STALL_S = 60.0
START_S = 300.0  # until the first actor lives: machines may have to be started for it
BARREN_ROUNDS = 3


@contextmanager
def ray_engine(engine: Engine, device: str) -> Iterator[Callable[[Job, Callable[[int], object]], Facts]]:
    """A function that does a job and calls `written` with the number of each shard that is done.

    It connects to the cluster at the first job that has something to do, and leaves it at the end of the block.
    """
    with ExitStack() as stack:
        clusters: list[Any] = []

        def run_job(job: Job, written: Callable[[int], object]) -> Facts:
            if not job.todo:
                return Facts()
            if not clusters:
                clusters.append(stack.enter_context(connected(engine)))
            return Rounds(clusters[0], engine, job, device, written).run()

        yield run_job


class Rounds:
    """One job on a cluster."""

    def __init__(self, ray: Any, engine: Engine, job: Job, device: str, written: Callable[[int], object]) -> None:
        self._ray, self._job, self._device, self._written = ray, job, device, written
        self._is_client = (engine.address or "").startswith(CLIENT)
        self._left = set(job.todo)
        self._budget, self._facts, self._status = Budget(job), Facts(), "starting"

    def run(self) -> Facts:
        """Round after round, until every shard is done or set aside."""
        job, barren = self._job, 0
        for shard in job.todo:
            remove(poisoned_path(job.folder, shard))

        def note() -> str:
            done = len(job.sizes) - len(self._left) - self._budget.n_aside
            return f"{done} of {len(job.sizes)} shards, {self._status}"

        with progress(job.title, job.units, job.units_done, note) as advance:
            while self._left:
                before = len(self._left)
                why = self._round(advance)
                barren = barren + 1 if len(self._left) == before else 0
                if self._left and barren == BARREN_ROUNDS:
                    raise MpaError(
                        f"{job.title}: the Ray cluster makes no progress ({why}): check it with ray status and rerun; "
                        f"what is done is kept"
                    )
        return self._facts

    def _round(self, advance: Advance) -> str:
        """Run one data set over the shards that are left; returns why it ended."""
        ray, job = self._ray, self._job
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from mpa_edge.engines import ray_pool

        # how many actors and readers fit on the machines that are there now
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        actors, gpus, cpus = fit_actors(nodes, job.config, self._device)
        readers = int(min(max(sum(node.get("CPU", 0) for node in nodes) - actors * cpus, 1), actors))
        ahead = ahead_bytes(sum(node.get("object_store_memory", 0) for node in nodes), actors, readers)
        # ledger and coordinator must not be lost: they run on this machine, for a client from outside on the head node
        here: dict[str, Any] = {"resources": {"node:__internal_head__": 0.001}}
        if not self._is_client:
            node_id = ray.get_runtime_context().get_node_id()
            here = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}
        ledger = ray.remote(Ledger).options(num_cpus=0, **here).remote(job.config.shard_tries)
        coordinator = ray.remote(ray_pool.Coordinator).options(num_cpus=0, **here).remote()
        spec = self._spec()
        groups = [(ray.put(group), len(group)) for group in self._groups(actors, spec.remote_files)]
        running = coordinator.run.remote(
            groups, spec, ledger, actors=actors, gpus=gpus, cpus=cpus, readers=readers, ahead_bytes=ahead
        )
        try:
            return self._wait(running, ledger, advance)
        finally:
            for actor in (coordinator, ledger):
                ray.kill(actor)

    def _wait(self, running: Any, ledger: Any, advance: Advance) -> str:
        """Collect what the ledger reports until the round ends or makes no progress."""
        ray, job = self._ray, self._job
        while True:
            over, _ = ray.wait([running], timeout=POLL_S)
            try:
                status = ray.get(ledger.poll.remote(), timeout=POLL_TIMEOUT_S)
            except ray.exceptions.RayError as error:
                return cause_of(error)
            self._status = status.line
            for event in status.events:
                if event.kind == "fatal":
                    raise MpaError(event.text)
                if event.shard not in self._left:
                    continue  # written twice: both have the same bytes
                self._left.remove(event.shard)
                if event.kind == "aside":
                    self._budget.set_aside(event.shard, event.tries, event.text)
                else:
                    for name, data in event.files:
                        path = inside(job.folder.parent, name)
                        make_folder(path.parent)
                        write_bytes(path, data)
                    self._facts = merged(self._facts, event.facts)
                    self._written(event.shard)
                advance(job.sizes[event.shard])
            advance(0)
            if over:
                try:
                    ray.get(running)
                except ray.exceptions.RayError as error:
                    return cause_of(error)
                return "shards were lost"
            if status.missing and status.idle_s > (STALL_S if status.met else START_S):
                say(f"{job.title}: no progress for {status.idle_s:.0f} s; continuing on the remaining machines")
                return "lost actors could not be restarted"

    def _groups(self, actors: int, with_files: bool) -> Iterator[list[bytes]]:
        """The shards that are left as packed blocks, in groups; `with_files`: with the files that their work reads."""
        worker, folder, left = self._job.worker, self._job.folder.parent, sorted(self._left)

        def packed(shards: Sequence[int]) -> bytes:
            """A block with what each shard carries, small enough to keep for all shards."""
            block = []
            for shard in shards:
                names = worker.inputs(shard) if with_files else ()
                block.append((shard, worker.item(shard), tuple((name, (folder / name).read_bytes()) for name in names)))
            return zlib.compress(pickle.dumps(block), 1)

        size = block_size(len(left), actors)
        for start in range(0, len(left), size * GROUP):
            end = min(start + size * GROUP, len(left))
            yield [packed(left[i : i + size]) for i in range(start, end, size)]

    def _spec(self) -> ActorSpec:
        """What every actor is given."""
        from mpa_edge.engines.ray_pool import ActorSpec

        worker, mark = self._job.worker, self._job.folder.absolute() / INPUTS
        return ActorSpec(
            worker=worker.portable(),
            mark=(mark, mark.read_bytes()),
            must_see=tuple(worker.must_see()),
            remote_files=not self._seen_by_all(mark),
            version=__version__,
        )

    def _seen_by_all(self, path: Path) -> bool:
        """Whether every machine of the cluster sees a file of this one."""
        ray = self._ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node for node in ray.nodes() if node["Alive"]]
        if len({node["NodeManagerAddress"] for node in nodes}) == 1 and not self._is_client:
            return True  # all nodes run on this machine
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        look = ray.remote(os.path.isfile)
        asked = [look.options(num_cpus=0, scheduling_strategy=one).remote(str(path)) for one in there]
        try:
            return all(ray.get(asked, timeout=POLL_TIMEOUT_S))
        except ray.exceptions.RayError:
            return False


def cause_of(error: BaseException) -> str:
    """The last line of an error from Ray, which names the cause. Raises MpaError where only the user can fix it.

    >>> cause_of(RuntimeError("The actor died." + chr(10) + "  it was killed by SIGKILL"))
    'RuntimeError: it was killed by SIGKILL'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lacking = next((line for line in lines if "No module named" in line), None)
    if lacking:
        raise MpaError(
            f"a machine of the Ray cluster lacks a package ({lacking}): install the same mpa-edge on all machines"
        ) from error
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]
