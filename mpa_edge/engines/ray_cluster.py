"""Connect to a Ray cluster, never to another user's by accident, and compute how many actors fit into it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

import psutil

from mpa_edge.config.recipe import EngineConfig
from mpa_edge.engines.job import Engine
from mpa_edge.engines.retries import reason_of
from mpa_edge.errors import MpaError, missing_package

MB = 1_000_000
STORE_MB = (100, 2000)  # Ray refuses less than 75
STORE_SHARE = 0.1
AHEAD_BYTES = (MB, 384 * MB)
CLIENT = "ray://"
AUTO = "auto"
CONNECT_S = 5.0
CLIENT_TRIES = 3
# read when Ray is imported: no usage statistics, output of its daemons stays in its own log files, and a cluster may
# take its time to start the process that serves a client
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "15",
}
NOTIFIER = "import sys; sys.stdin.buffer.read() or sys.stderr.write(sys.argv[1])"
GONE = (
    "this process was ended from outside, because its Ray cluster went away or by a kill: rerun; what is done is kept"
)
Resources = dict[str, float]


def require_ray(address: str | None = None) -> None:
    """Raise MpaError where Ray, or a package that it needs for this kind of address, is not installed."""
    for module in ("ray", "pandas", *(("grpc",) if (address or "").startswith(CLIENT) else ())):
        if find_spec(module) is None:
            raise missing_package(module, "ray")


@contextmanager
def connected(engine: Engine) -> Iterator[Any]:
    """The `ray` module, connected to the cluster of an address, or to a new one that ends with the block.

    RAY_ADDRESS, and a cluster that already runs on this machine, are used only where the address is `auto`.
    """
    require_ray(engine.address)
    if engine.address:
        _require_there(engine.address)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        raise MpaError("this process is already connected to a Ray cluster: call ray.shutdown() first")
    own: dict[str, Any] = {"num_cpus": max(2, len(os.sched_getaffinity(0))), "object_store_memory": store_bytes()}
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        try:
            _start(ray, engine, {} if engine.address else {**own, "include_dashboard": False})
        finally:
            for number, handler in handlers.items():  # Ray installs its own
                signal.signal(number, handler)
        # Ray ends this process without a message as soon as the daemon of this machine is gone. A second process waits
        # for the pipe to close, and writes the message unless it was told that this process ended normally
        command = [sys.executable, "-ISc", NOTIFIER, f"error: {GONE}\n"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as witness:
            try:
                yield ray
            finally:
                with suppress(OSError):
                    witness.communicate(b"alive")
    finally:
        ray.shutdown()


def _start(ray: Any, engine: Engine, options: dict[str, Any]) -> None:
    """Start a private cluster, or join the one of the address."""
    tries = CLIENT_TRIES if (engine.address or "").startswith(CLIENT) else 1
    for left in reversed(range(tries)):
        try:
            ray.init(address=engine.address or "local", log_to_driver=False, logging_level="ERROR", **options)
        except Exception as error:  # each kind of address raises its own errors
            # the head of a busy cluster gives the process that it starts for a client a limited time
            if left and isinstance(error, ConnectionAbortedError):
                continue
            if engine.address:
                raise _no_cluster(engine.address, reason_of(error)) from error
            raise MpaError(f"Ray does not start on this machine ({reason_of(error)}): use --engine local") from error
        return


def _require_there(address: str) -> None:
    """Raise MpaError where nothing listens at HOST:PORT: Ray itself would try for five minutes."""
    address = os.environ.get("RAY_ADDRESS", AUTO) if address == AUTO else address
    if address == AUTO:
        return  # Ray looks for one on this machine, and fails at once where there is none
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if not host or not port.isdigit():
        raise MpaError(f"'{address}' is not an address of a Ray cluster: use auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, said: str) -> MpaError:
    return MpaError(
        f"no Ray cluster at {address} ({said}): check it with ray status; set RAY_AUTH_MODE=token for one that "
        f"needs tokens"
    )


def store_bytes() -> int:
    """Size of the object store of a local cluster: a share of the memory, limited by the free shared memory."""
    shared = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else STORE_MB[1] * MB  # noqa: S108
    wanted = min(STORE_SHARE * psutil.virtual_memory().total, 0.8 * shared, STORE_MB[1] * MB)
    return int(max(wanted, STORE_MB[0] * MB))


def fit_actors(nodes: Sequence[Resources], config: EngineConfig, device: str) -> tuple[int, float, float]:
    """(actors, GPUs of each, CPUs of each) on machines with these resources. Raises MpaError where no actor fits.

    >>> fit_actors([{"CPU": 32.0, "GPU": 8.0}, {"CPU": 32.0, "GPU": 8.0}], EngineConfig(), "auto")
    (16, 1.0, 1.0)
    >>> fit_actors([{"CPU": 8.0}, {"CPU": 4.0}], EngineConfig(), "auto")
    (3, 0.0, 4.0)
    """
    some_gpu = device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes)
    gpus = config.gpus_per_actor if config.gpus_per_actor is not None else float(some_gpu)
    useful = [node for node in nodes if node.get("CPU", 0) > 0 and (not gpus or node.get("GPU", 0) > 0)]
    whole = min((node["CPU"] for node in useful), default=1.0)
    cpus = config.cpus_per_actor or (1.0 if gpus or config.actors else whole)
    needs = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    room = sum(int(min(node[kind] / need for kind, need in needs.items())) for node in useful)
    if not room:
        raise MpaError(
            f"no machine of the Ray cluster has {gpus:g} GPUs and {cpus:g} CPUs for an actor: use other "
            f"engine.gpus_per_actor and engine.cpus_per_actor"
        )
    return min(config.actors or room, room), gpus, cpus


def ahead_bytes(store: float, actors: int, readers: int) -> int:
    """Bytes of pixels of one shard that may wait in the object store; all that wait must leave most of it free."""
    low, high = AHEAD_BYTES
    return int(min(max(store / (8 * (actors + readers)), low), high))


def block_size(todo: int, actors: int) -> int:
    """Shards in one task of an actor: several where there are so many that no actor idles for long at the end."""
    return min(max(todo // (64 * actors), 1), 16)
