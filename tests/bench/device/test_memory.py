"""Peak memory against /usr/bin/time, and the effect of swap."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpa_edge.bench.device.memory import PeakMemory, Watcher, status_bytes

ROOT = Path(__file__).parents[3]
MIB = 1 << 20
# what a runtime does: maps a model and touches it, allocates, gives back
WORK = """
import json, mmap, sys
from mpa_edge.bench.device.memory import Watcher
with Watcher() as watcher:
    with open(sys.argv[1], "rb") as file:
        model = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        total = sum(model[i] for i in range(0, len(model), 4096))
    buffer = bytearray(48 << 20)
    del buffer
    model.close()
print(json.dumps(watcher.values()))
"""


def test_within_three_percent_of_time_v(tmp_path: Path) -> None:
    model = tmp_path / "model.bin"
    model.write_bytes(b"x" * (64 * MIB))
    command = ["/usr/bin/time", "-v", sys.executable, "-c", WORK, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT)
    found = json.loads(done.stdout)
    theirs = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
    assert theirs
    assert found["peak_bytes"] == pytest.approx(int(theirs[1]) * 1024, rel=0.03)
    assert found["peak_bytes"] > 112 * MIB
    assert found["method"] == "VmHWM"


def fields(proc: Path, *, hwm: int | None, rss: int, swap: int) -> None:
    """/proc/7/status, in MiB."""
    (proc / "7").mkdir(parents=True, exist_ok=True)
    rows = [f"Name:\tx\nVmRSS:\t{rss * 1024} kB\nVmSwap:\t{swap * 1024} kB\n"]
    rows += [f"VmHWM:\t{hwm * 1024} kB\n"] if hwm is not None else []
    (proc / "7" / "status").write_text("".join(rows))


def meminfo(proc: Path, *, swap: int) -> None:
    proc.mkdir(parents=True, exist_ok=True)
    (proc / "meminfo").write_text(f"SwapTotal: {swap * 1024} kB\n")


def test_memory_that_went_to_zram_is_counted(tmp_path: Path) -> None:
    meminfo(tmp_path, swap=500)
    fields(tmp_path, hwm=100, rss=100, swap=0)
    with Watcher(7, proc=tmp_path, interval_s=0.005) as watcher:
        fields(tmp_path, hwm=100, rss=60, swap=90)
        wait_for(lambda: watcher.held_bytes == 150 * MIB)
        fields(tmp_path, hwm=100, rss=20, swap=0)
    assert watcher.values() == {"peak_bytes": 150 * MIB, "method": "max(VmHWM, VmRSS + VmSwap)"}


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "nobody looked"
        time.sleep(0.002)


def test_without_swap_no_thread_disturbs(tmp_path: Path) -> None:
    meminfo(tmp_path, swap=0)
    fields(tmp_path, hwm=100, rss=80, swap=0)
    with Watcher(7, proc=tmp_path) as watcher:
        assert not watcher._thread.is_alive()
    assert watcher.values() == {"peak_bytes": 100 * MIB, "method": "VmHWM"}


def test_a_process_that_has_ended_keeps_the_last_peak(tmp_path: Path) -> None:
    meminfo(tmp_path, swap=0)
    fields(tmp_path, hwm=100, rss=80, swap=0)
    with Watcher(7, proc=tmp_path) as watcher:
        (tmp_path / "7" / "status").unlink()
    assert watcher.values() == {"peak_bytes": 100 * MIB, "method": "VmHWM"}


def test_without_a_high_water_mark_the_samples_count(tmp_path: Path) -> None:
    fields(tmp_path, hwm=None, rss=80, swap=10)
    with Watcher(7, proc=tmp_path) as watcher:
        pass
    assert watcher.values() == {"peak_bytes": 90 * MIB, "method": "VmRSS + VmSwap, sampled (no VmHWM)"}


@pytest.mark.parametrize("status", [None, "VmData: 5 kB\n"])
def test_nothing_to_read_is_null_with_a_reason(tmp_path: Path, status: str | None) -> None:
    if status:
        (tmp_path / "7").mkdir()
        (tmp_path / "7" / "status").write_text(status)
    with Watcher(7, proc=tmp_path) as watcher:
        pass
    assert watcher.values() == {"peak_bytes": None, "method": "no VmHWM in /proc"}


def test_another_process_can_be_read() -> None:
    peak = PeakMemory()
    peak.add(status_bytes(os.getppid()))
    assert peak.hwm_bytes is not None
    assert peak.hwm_bytes > MIB
