"""How much memory is free, and how many requests go together in it."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
FIRST_BATCH = 32
SHARE = 0.5


def free_bytes(device: str) -> int:
    """Memory that can still be taken: of the GPU, or of the machine and of the container on it."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    return min(free, _left(CGROUP)) if (CGROUP / "memory.max").is_file() else free


def _left(group: Path) -> int:
    """Bytes up to the limit of a cgroup (version 2); page cache counts as free, because the kernel gives it back."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 2**62
    if not limit.isdigit():
        return 2**62
    return max(0, int(limit) - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0)))


class BatchSize:
    """How many requests go together: grows while memory is there, is halved when it runs out."""

    def __init__(self, largest: int) -> None:
        """Begins small, never above `largest`."""
        self.size, self.largest = min(FIRST_BATCH, largest), largest

    def halve(self, tried: int) -> None:
        """After `tried` requests ran out of memory; never grows to that again."""
        self.size = self.largest = max(1, tried // 2)

    def worked(self, n_requests: int, used_bytes: int, free: int) -> None:
        """After a batch of `n_requests` that took `used_bytes` at its height: doubles where twice as many surely fit.

        >>> size = BatchSize(256)
        >>> size.worked(32, used_bytes=100, free=1000)
        >>> size.size
        64
        >>> size.worked(64, used_bytes=200, free=700)
        >>> size.size
        64
        """
        larger = min(2 * self.size, self.largest)
        if n_requests >= self.size < larger and used_bytes * larger <= SHARE * free * n_requests:
            self.size = larger
