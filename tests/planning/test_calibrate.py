"""This machine's peaks: measured in a process of its own, the quickest run counts."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.planning import calibrate


def test_the_quickest_run_counts() -> None:
    loops = iter([1, 200_000, 20_000] + [200_000] * 1000)
    quickest = calibrate.best_s(lambda: sum(range(next(loops))), 0.01)
    started = time.thread_time()
    sum(range(200_000))
    assert 0 < quickest < (time.thread_time() - started) / 2


def test_waiting_does_not_count() -> None:
    assert calibrate.best_s(lambda: time.sleep(0.002), 0.01) < 0.001


def test_this_machine_is_measured() -> None:
    device = calibrate.this_machine()
    assert device.kind == "cpu"
    assert 1e9 < device.flops < 1e13
    assert 1e9 < device.memory_bandwidth < 1e12
    assert device.memory_bytes > 1e8
    assert f"{len(os.sched_getaffinity(0))} CPU threads" in device.title


def test_products_are_counted_for_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    found = subprocess.CompletedProcess([], 0, stdout='{"flops": 5e9, "memory_bandwidth": 7e9}', stderr="")
    monkeypatch.setattr(calibrate.subprocess, "run", lambda *_, **__: found)
    one, three = calibrate.this_machine(1), calibrate.this_machine(3)
    assert (one.flops, three.flops) == (5e9, 15e9)
    assert one.memory_bandwidth == three.memory_bandwidth == 7e9


def test_a_process_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate.sys, "executable", "/bin/false")
    with pytest.raises(MpaError, match="cannot be measured: name a device of the list instead"):
        calibrate.this_machine(1)
