"""Which requests are answered together: those alike in limit, length and image, as many as fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mpa_edge.types import Request

CGROUP = Path("/sys/fs/cgroup")
FIRST_BATCH = 32
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Query:
    """One request with its prompt, in two parts where the prefix is shared."""

    place: int
    """Index of the request, and of its reply."""
    request: Request
    head: str
    """Text up to and including the image token; the whole prompt where nothing is shared."""
    tail: Sequence[int]
    """Tokens after it."""

    @property
    def key(self) -> tuple[int, str]:
        """The same for all requests that share a prefix."""
        return id(self.request.image), self.head


def length_of(image_processor: Any) -> Callable[[tuple[int, int]], float]:
    """Function of an image's (width, height) that orders images by the number of their tokens.

    Processors that keep an image's size (Qwen's) go by its area; the others cut tiles by its shape.

    >>> shape = length_of(object())
    >>> shape((512, 512)) < shape((1024, 512)) == shape((200, 400))
    True
    """
    if hasattr(image_processor, "merge_size"):
        return lambda size: size[0] * size[1]
    return lambda size: max(size) / min(size)


def in_order(
    queries: Sequence[Query], length: Callable[[tuple[int, int]], float], is_stored: Callable[[Query], bool]
) -> list[Query]:
    """Queries by limit of new tokens, then by length of the image, all about one image next to each other.

    Images whose prefix is stored come first: it is used before new ones push it out.
    """
    first: dict[tuple[int, str], int] = {}
    for query in queries:
        first.setdefault(query.key, query.place)

    def rank(query: Query) -> tuple[int, bool, float, int]:
        request = query.request
        return request.max_new_tokens, not is_stored(query), length(request.image.size), first[query.key]

    return sorted(queries, key=rank)


class BatchSize:
    """How many requests go together: grows while there is memory, is halved when memory runs out."""

    def __init__(self, largest: int) -> None:
        """Starts small, never above `largest`."""
        self.size, self.largest = min(FIRST_BATCH, largest), largest

    def halve(self, tried: int) -> None:
        """After `tried` requests ran out of memory; never grows to that many again."""
        self.size = self.largest = max(1, tried // 2)

    def worked(self, n_requests: int, used_bytes: int, free: int) -> None:
        """After a batch of `n_requests` with a peak of `used_bytes`: doubles if twice as many surely fit.

        >>> size = BatchSize(256)
        >>> size.worked(32, used_bytes=100, free=1000)
        >>> size.size
        64
        >>> size.worked(64, used_bytes=200, free=700)
        >>> size.size
        64
        """
        larger = min(2 * self.size, self.largest)
        if n_requests >= self.size < larger and used_bytes * larger <= MEMORY_SHARE * free * n_requests:
            self.size = larger


def free_bytes(device: str) -> int:
    """Memory that can still be allocated: on the GPU, or on the machine and in its container (cgroup version 2).

    Page cache counts as free, because the kernel gives it back.
    """
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    cached = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
    return min(free, max(0, limit - used + cached))
