"""The book-keeping of a cluster, with a clock of the test's own."""

from __future__ import annotations

import pytest

from mpa_edge.engines.job import Facts
from mpa_edge.engines.ray_ledger import ALIVE_S, DIED, Ledger


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock) -> Ledger:
    return Ledger(tries_allowed=3, clock=clock)


def test_a_shard_that_is_done_is_told_once_and_forgotten(ledger) -> None:
    assert ledger.begin(7, "a")
    ledger.done(7, "a", Facts({"device": "cpu"}, 5))
    events = ledger.poll().events
    assert [(event.kind, event.shard, event.facts.peak_rss_bytes) for event in events] == [("done", 7, 5)]
    assert ledger.poll().events == ()
    assert ledger._tries == {}


def test_errors_are_counted_and_the_last_reason_counts(ledger) -> None:
    for n, reason in enumerate(("one", "two", "three"), 1):
        assert ledger.begin(3, "a")
        assert ledger.failed(3, "a", reason) == n
    assert not ledger.begin(3, "a")
    seen = ledger.poll()
    assert [(event.kind, event.tries, event.text) for event in seen.events] == [("aside", 3, "three")]
    assert seen.line == "1 actor, 3 failed tries"


def test_a_worker_that_died_has_tried(ledger) -> None:
    for worker in ("a", "b", "c"):
        assert ledger.begin(3, worker)
    assert not ledger.begin(3, "d")
    assert ledger.poll().events[0].text == DIED
    assert "3 failed tries" in ledger.poll().line


def test_the_dead_leave_the_screen(ledger, clock) -> None:
    ledger.beat("a")
    ledger.begin(1, "b")
    assert ledger.poll().line == "2 actors, slowest: shard 1 for 0 s"
    ledger.begin(1, "c")  # who was at it before is gone
    assert ledger.poll().line == "2 actors, 1 failed try, slowest: shard 1 for 0 s"
    clock.now = ALIVE_S
    ledger.beat("c")
    assert ledger.poll().line == f"1 actor, 1 failed try, slowest: shard 1 for {ALIVE_S:.0f} s"
    ledger.leave("c")
    assert ledger.poll().line == "0 actors, 1 failed try"


def test_the_slowest_shard(ledger, clock) -> None:
    assert ledger.poll().line == "0 actors"
    ledger.begin(1, "a")
    clock.now = 2.0
    ledger.begin(2, "b")
    clock.now = 5.0
    assert ledger.poll().line == "2 actors, slowest: shard 1 for 5 s"
    ledger.done(1, "a", Facts())
    assert ledger.poll().line == "2 actors, slowest: shard 2 for 3 s"


def test_idle_is_when_nobody_who_lives_works(ledger, clock) -> None:
    assert (ledger.poll().met, ledger.poll().missing) == (False, 1)
    clock.now = 20.0
    assert ledger.poll().idle_s == 20.0
    ledger.beat("a")  # it loads its model
    assert (ledger.poll().idle_s, ledger.poll().met) == (0.0, True)
    ledger.ready("a")
    clock.now = 23.0
    assert (ledger.poll().idle_s, ledger.poll().missing) == (3.0, 0)
    ledger.begin(1, "a")
    assert ledger.poll().idle_s == 0.0
    clock.now = 23.0 + ALIVE_S
    assert (ledger.poll().idle_s, ledger.poll().missing) == (ALIVE_S, 1)


def test_what_the_user_must_fix(ledger) -> None:
    ledger.fatal("no such model: name another one")
    assert [(event.kind, event.text) for event in ledger.poll().events] == [
        ("fatal", "no such model: name another one")
    ]
