"""Shards over the machines of a Ray cluster. The work itself is Ray Data's (`ray_pool`); here is what waits for it.

A round is one data set over all shards that are not done. What a round loses (a machine that went with its actors, and
none to take their place) is done in the next one; the files of the run folder say what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mpa_edge import __version__
from mpa_edge.engines import Engine, Facts, Job, Outcome, merged
from mpa_edge.engines.ray_cluster import CLIENT, ahead_bytes, block_size, connected, pool
from mpa_edge.engines.ray_ledger import Event, Ledger
from mpa_edge.engines.retries import Budget, forgive
from mpa_edge.errors import MpaError
from mpa_edge.progress import Advance, progress, say
from mpa_edge.runs.files import make_folder, write_bytes
from mpa_edge.runs.manifest import INPUTS

GROUP = 64  # blocks behind one reference
LOOK_S = 0.5
LOOK_TIMEOUT_S = 60.0
STALL_S = 60.0
START_S = 300.0  # until the first actor lives: machines may have to be started for it
BARREN_ROUNDS = 3
AGAIN = "look at ray status and run the same command again, what is done is kept"
Item = TypeVar("Item")


@contextmanager
def ray_jobs(engine: Engine, device: str) -> Iterator[Callable[[Job], Outcome]]:
    """What runs a job; the cluster is there from the first one that has something to do to the end of the block."""
    with ExitStack() as stack:
        clusters: list[Any] = []

        def do(job: Job) -> Outcome:
            if not job.todo:
                return Outcome()
            if not clusters:
                clusters.append(stack.enter_context(connected(engine)))
            return Rounds(clusters[0], engine, job, device).outcome()

        yield do


class Rounds:
    """One job on a cluster that is there."""

    def __init__(self, ray: Any, engine: Engine, job: Job, device: str) -> None:
        self._ray, self._engine, self._job, self._device = ray, engine, job, device
        self._left = set(job.todo)
        self._budget, self._facts, self._line = Budget(job), Facts(), "starting"

    def outcome(self) -> Outcome:
        """Rounds, until every shard is done or set aside."""
        job, barren = self._job, 0
        for shard in job.todo:
            forgive(job.folder, shard)
        units = job.total if job.units is None else job.units
        with progress(job.title, units, job.units_done, self._note) as advance:
            while self._left:
                before = len(self._left)
                why = self._round(advance)
                barren = barren + 1 if len(self._left) == before else 0
                if self._left and barren == BARREN_ROUNDS:
                    raise MpaError(f"{job.title}: the Ray cluster does nothing any more ({why}): {AGAIN}")
        return Outcome(tuple(self._budget.aside), self._facts)

    def _note(self) -> str:
        """What the screen shows beside the bar."""
        done = self._job.total - len(self._left) - len(self._budget.aside)
        return f"{done} of {self._job.total} shards, {self._line}"

    def _round(self, advance: Advance) -> str:
        """One data set over what is left; why it ended."""
        ray, plan = self._ray, self._plan()
        from mpa_edge.engines import ray_pool

        here = self._beside_us()
        ledger = ray.remote(Ledger).options(num_cpus=0, **here).remote(self._job.config.shard_tries)
        coordinator = ray.remote(ray_pool.Coordinator).options(num_cpus=0, **here).remote()
        sent = self._sent()
        groups = [(ray.put(group), len(group)) for group in self._groups(plan.actors, sent.far)]
        running = coordinator.run.remote(groups, sent, plan, ledger)
        try:
            return self._wait(running, ledger, advance)
        finally:
            for actor in (coordinator, ledger):
                ray.kill(actor)

    def _wait(self, running: Any, ledger: Any, advance: Advance) -> str:
        """Hear of shards until the round is over, or nothing moves."""
        ray = self._ray
        while True:
            over, _ = ray.wait([running], timeout=LOOK_S)
            try:
                seen = ray.get(ledger.look.remote(), timeout=LOOK_TIMEOUT_S)
            except ray.exceptions.RayError as error:
                return cause_of(error)
            self._line = seen.line()
            for event in seen.events:
                self._hear(event, advance)
            advance(0)
            if over:
                return self._end_of(running)
            if seen.missing and seen.idle_s > (STALL_S if seen.met else START_S):
                say(f"{self._job.title}: nothing moved for {seen.idle_s:.0f} s, going on with what machines are left")
                return "actors that were lost could not be started again"

    def _end_of(self, running: Any) -> str:
        try:
            self._ray.get(running)
        except self._ray.exceptions.RayError as error:
            return cause_of(error)
        return "shards were lost"

    def _hear(self, event: Event, advance: Advance) -> None:
        if event.kind == "fatal":
            raise MpaError(event.text)
        if event.shard not in self._left:
            return  # written twice: both have the same bytes
        self._left.remove(event.shard)
        if event.kind == "aside":
            self._budget.set_aside(event.shard, event.tries, event.text)
        else:
            for name, data in event.files:
                write_bytes(make_folder((self._job.root / name).parent) / Path(name).name, data)
            self._facts = merged(self._facts, event.facts)
            self._job.written(event.shard)
        advance(self._job.weigh(event.shard))

    def _plan(self) -> Any:
        from mpa_edge.engines.ray_pool import Plan

        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        actors, gpus, cpus = pool(nodes, self._job.config, self._device)
        spare = sum(node.get("CPU", 0) for node in nodes) - actors * cpus
        readers = int(min(max(spare, 1), actors))
        store = sum(node.get("object_store_memory", 0) for node in nodes)
        return Plan(actors, gpus, cpus, readers, ahead_bytes(store, actors, readers))

    def _groups(self, actors: int, far: bool) -> Iterator[list[bytes]]:
        from mpa_edge.engines.ray_pool import packed

        job, size = self._job, block_size(len(self._left), actors)

        def luggage(shard: int) -> Any:
            needs = job.needs(shard) if far else ()
            return job.entries(shard), tuple((name, (job.root / name).read_bytes()) for name in needs)

        blocks = (packed((i, luggage(i)) for i in block) for block in cut(sorted(self._left), size))
        return cut(blocks, GROUP)

    def _sent(self) -> Any:
        from mpa_edge.engines.ray_pool import Sent

        job, sign = self._job, self._job.folder.absolute() / INPUTS
        return Sent(job.make, job.read, (sign, sign.read_bytes()), job.sees, not self._all_see(sign), __version__)

    def _all_see(self, path: Path) -> bool:
        """Whether every machine sees a file of ours."""
        ray = self._ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from mpa_edge.engines.ray_pool import is_file

        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        if len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) == 1 and not self._is_client:
            return True  # they are all this machine
        look = ray.remote(is_file)
        asked = [
            look.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(one, soft=False)).remote(path)
            for one in nodes
        ]
        try:
            return all(ray.get(asked, timeout=LOOK_TIMEOUT_S))
        except ray.exceptions.RayError:
            return False

    @property
    def _is_client(self) -> bool:
        return (self._engine.address or "").startswith(CLIENT)

    def _beside_us(self) -> dict[str, Any]:
        """Where what must not go lives: on this machine; for a client outside of the cluster, on its head."""
        if self._is_client:
            return {"resources": {"node:__internal_head__": 0.001}}
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = self._ray.get_runtime_context().get_node_id()
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


def cut(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Items in lists of so many; the last one may be shorter.

    >>> list(cut("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def cause_of(error: BaseException) -> str:
    """The last line of what Ray says, which is the cause. Raises MpaError where only the user can mend it.

    >>> cause_of(RuntimeError("The actor died." + chr(10) + "  it was killed by SIGKILL"))
    'RuntimeError: it was killed by SIGKILL'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lacking = next((line for line in lines if "No module named" in line), None)
    if lacking:
        raise MpaError(
            f"a machine of the Ray cluster lacks a package ({lacking}): install the same mpa-edge on all"
        ) from error
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]
