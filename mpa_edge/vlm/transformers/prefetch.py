"""Work that a second thread does before its result is asked for: pictures are prepared while a model computes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ahead(Generic[Item, Result]):
    """`work` on items in their order, in one thread, as long as results that nobody has taken yet fit in `room`.

    Use it as a context: at its end nothing is left running.
    """

    def __init__(
        self,
        work: Callable[[Item], Result],
        items: Iterable[tuple[Hashable, Item]],
        room: int,
        weight: Callable[[Result], int],
    ) -> None:
        """`items` are pairs of a key and what to work on; `weight` of a result and `room` have one unit."""
        self._work, self._room, self._weight = work, room, weight
        self._held, self._closed, self._changed = 0, False, threading.Condition()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._waiting: deque[tuple[Hashable, Future[Result]]] = deque(
            (key, self._pool.submit(self._in_turn, item)) for key, item in items
        )

    def take(self, key: Hashable) -> Result | None:
        """The result for a key, None where it is not its turn; raises what `work` raised."""
        if not self._waiting or self._waiting[0][0] != key:
            return None
        result = self._waiting.popleft()[1].result()
        self._hold(-self._weight(result))
        return result

    def _in_turn(self, item: Item) -> Result:
        with self._changed:
            # what is held alone may be as large as it likes: else nothing would ever come
            self._changed.wait_for(lambda: self._closed or self._held < self._room)
        result = self._work(item)
        self._hold(self._weight(result))
        return result

    def _hold(self, more: int) -> None:
        with self._changed:
            self._held += more
            self._changed.notify_all()

    def __enter__(self) -> Ahead[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._pool.shutdown(wait=True, cancel_futures=True)
