"""Results that a second thread computes before they are asked for: images are prepared while a model computes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self


class Prefetch:
    """`work` on items in order, in one thread, as long as results that were not taken yet fit in `capacity`.

    Use it as a context manager: at its end nothing is left running.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        items: Iterable[tuple[Hashable, Any]],
        capacity: int,
        weight: Callable[[Any], int],
    ) -> None:
        """`items` are pairs of a key and what to work on; `weight` of a result is in the unit of `capacity`."""
        self._work, self._capacity, self._weight = work, capacity, weight
        self._held, self._closed, self._changed = 0, False, threading.Condition()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._waiting: deque[tuple[Hashable, Future[Any]]] = deque(
            (key, self._pool.submit(self._run, item)) for key, item in items
        )

    def take(self, key: Hashable) -> Any:
        """The result for a key, None where it is not the next one; raises what `work` raised."""
        if not self._waiting or self._waiting[0][0] != key:
            return None
        result = self._waiting.popleft()[1].result()
        self._hold(-self._weight(result))
        return result

    def _run(self, item: Any) -> Any:
        with self._changed:
            # a single result may exceed the capacity: else it would never be computed
            self._changed.wait_for(lambda: self._closed or self._held < self._capacity)
        result = self._work(item)
        self._hold(self._weight(result))
        return result

    def _hold(self, more: int) -> None:
        with self._changed:
            self._held += more
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._pool.shutdown(wait=True, cancel_futures=True)
