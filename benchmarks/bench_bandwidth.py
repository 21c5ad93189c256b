"""How fast one thread reads memory: bytes a second, the fastest of a few ways to read 512 MB with numpy.

    OPENBLAS_NUM_THREADS=1 python benchmarks/bench_bandwidth.py

Far larger than the caches, read in order, nothing written. What a model's decoding can reach at most: it reads all its
weights for each token.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

MB = 2**20
WAYS = {
    "dot": lambda array: np.dot(array.view(np.float32), array.view(np.float32)),
    "sum": lambda array: array.view(np.int64).sum(),
    "max": lambda array: array.view(np.int32).max(),
    "any": lambda array: np.bitwise_or.reduce(array.view(np.int64)),
}


def best_bytes_per_s(size_bytes: int = 512 * MB, rounds: int = 2) -> float:
    """The fastest pass."""
    array = np.zeros(size_bytes, np.uint8)
    array[::4096] = 1  # touched: fresh pages are all the same one
    found = []
    for way in WAYS.values():
        for _ in range(rounds):
            started = time.perf_counter()
            way(array)
            found.append(size_bytes / (time.perf_counter() - started))
    return max(found)


def measured() -> float:
    """In a process of its own, on one thread."""
    program = [sys.executable, str(Path(__file__))]
    done = subprocess.run(program, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, check=True, stdout=subprocess.PIPE)
    return float(done.stdout)


if __name__ == "__main__":
    print(best_bytes_per_s())
