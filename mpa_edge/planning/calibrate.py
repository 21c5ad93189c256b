"""Peaks of the machine that runs this, measured in a second: operations of a matrix product, bytes of memory read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

from mpa_edge.errors import MpaError
from mpa_edge.planning.records import Device

ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "MKL", "OMP", "VECLIB_MAXIMUM")}
EDGE = 384  # a product that stays in a core's cache
READ_BYTES = 64 * 2**20  # far more than the caches hold
WATCH_S, LEAST_RUNS = 0.3, 25
LIMIT_S = 60


def best_s(work: Callable[[], object], watch_s: float) -> float:
    """The quickest of as many runs as fit the time, in seconds of this thread: others at work only make it slower."""
    work()
    found: list[float] = []
    end = time.perf_counter() + watch_s
    while len(found) < LEAST_RUNS or time.perf_counter() < end:
        started = time.thread_time()
        work()
        found.append(time.thread_time() - started)
    return min(found)


def peaks(watch_s: float = WATCH_S) -> dict[str, float]:
    """Operations and bytes a second of this process, fp32, with numpy."""
    import numpy as np

    a = np.full((EDGE, EDGE), 0.5, np.float32)
    out, long = np.empty_like(a), np.ones(READ_BYTES // 4, np.int32)
    return {
        "flops": 2 * EDGE**3 / best_s(lambda: np.matmul(a, a, out=out), watch_s),
        "memory_bandwidth": long.nbytes / best_s(long.max, watch_s),
    }


def this_machine(threads: int | None = None) -> Device:
    """The CPU of this machine as a device: one thread is measured, in a process of its own, and counted for each core.

    Memory is shared: one thread's reading is the machine's. Raises MpaError where the measurement does not run.
    """
    import psutil

    cores = threads or len(os.sched_getaffinity(0))
    program = [sys.executable, "-c", "import mpa_edge.planning.calibrate as c; c.show()"]
    try:
        done = subprocess.run(
            program, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=LIMIT_S, check=True
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise MpaError("this machine cannot be measured: name a device of the list instead, --device NAME") from error
    return Device(
        title=f"this machine, {cores} CPU threads, fp32",
        kind="cpu",
        memory_bytes=psutil.virtual_memory().total,
        flops=cores * found["flops"],
        memory_bandwidth=found["memory_bandwidth"],
        source="measured just now",
    )


def show() -> None:
    """Print the peaks as JSON, for the process that started this one."""
    sys.stdout.write(json.dumps(peaks()))
