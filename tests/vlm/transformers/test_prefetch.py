"""The second thread: results in order, never too far ahead, nothing left running."""

from __future__ import annotations

import threading
import time

import pytest

from mpa_edge.vlm.transformers.prefetch import Prefetch


def test_results_come_in_order_from_one_other_thread() -> None:
    threads = set()

    def work(item: int) -> int:
        threads.add(threading.get_ident())
        return 10 * item

    with Prefetch(work, [(key, key) for key in range(5)], capacity=100, weight=lambda _: 1) as ahead:
        assert [ahead.take(key) for key in range(5)] == [0, 10, 20, 30, 40]
        assert ahead.take(5) is None
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_whose_turn_it_is_not_gets_nothing_and_the_others_keep_theirs() -> None:
    with Prefetch(str, [("a", 1), ("b", 2)], capacity=9, weight=len) as ahead:
        assert ahead.take("b") is None
        assert ahead.take("a") == "1"
        assert ahead.take("b") == "2"


def test_it_waits_at_its_capacity() -> None:
    done: list[int] = []
    with Prefetch(
        lambda item: done.append(item) or item, [(i, i) for i in range(9)], capacity=6, weight=lambda _: 3
    ) as ahead:
        wait_for(lambda: len(done) == 2)
        time.sleep(0.05)
        assert done == [0, 1]
        assert ahead.take(0) == 0
        wait_for(lambda: len(done) == 3)
        time.sleep(0.05)
        assert done == [0, 1, 2]


def test_one_result_may_be_larger_than_the_capacity() -> None:
    with Prefetch(lambda item: item, [(i, i) for i in range(3)], capacity=1, weight=lambda _: 50) as ahead:
        assert [ahead.take(i) for i in range(3)] == [0, 1, 2]


def test_an_error_comes_where_its_result_would() -> None:
    with Prefetch(lambda item: 1 // item, [(i, i) for i in (1, 0, 2)], capacity=9, weight=lambda _: 1) as ahead:
        assert ahead.take(1) == 1
        with pytest.raises(ZeroDivisionError):
            ahead.take(0)
        assert ahead.take(2) == 0


def test_nothing_runs_on_after_the_end() -> None:
    done, before = [], threading.active_count()
    with Prefetch(lambda item: done.append(item) or item, [(i, i) for i in range(99)], 2, lambda _: 1):
        wait_for(lambda: len(done) == 2)
    assert len(done) <= 3
    assert threading.active_count() == before


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
