"""Peak memory of a process, and how it was read.

Standard library only, and no newer Python than 3.10: the runner on the device imports this file.

- VmHWM counts every page that was ever resident, mapped model files included. The peak of a control group does not: it
  misses pages that another process had read before. An address-space limit counts what was never touched
- swapped pages are not resident. On a phone with zram a process shrinks while it still holds its memory, so there VmRSS
  + VmSwap is watched as well, and the larger one counts
- a Jetson's GPU takes its memory from the same bank without a trace in the process: there the drop of MemAvailable
  since before the load is read as well (of all processes together, so as a second figure, never instead of the first)
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

PROC = Path("/proc")
KIB = 1024
INTERVAL_S = 0.05


def status_bytes(pid: int | str = "self", proc: Path = PROC) -> dict[str, int]:
    """The Vm fields of a process in bytes; empty where the process is gone or hidden.

    >>> 0 < status_bytes()["VmRSS"] <= status_bytes()["VmHWM"]
    True
    """
    try:
        rows = (proc / str(pid) / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return kib_fields(row for row in rows if row.startswith("Vm"))


def kib_fields(rows: Iterable[str]) -> dict[str, int]:
    """`Name:  123 kB` -> bytes; other rows are left out.

    >>> kib_fields(["VmHWM:\\t  2 kB", "Name:\\tsh", "HugePages_Total: 0"])
    {'VmHWM': 2048}
    """
    found = {}
    for row in rows:
        name, _, value = row.partition(":")
        number, _, unit = value.strip().partition(" ")
        if unit == "kB" and number.isdigit():
            found[name] = int(number) * KIB
    return found


def meminfo_bytes(proc: Path = PROC) -> dict[str, int]:
    """/proc/meminfo in bytes; empty where it is hidden."""
    try:
        return kib_fields((proc / "meminfo").read_text(encoding="utf-8").splitlines())
    except OSError:
        return {}


def has_swap(proc: Path = PROC) -> bool:
    """Whether pages can leave the memory: a swap partition, a file, zram."""
    return meminfo_bytes(proc).get("SwapTotal", 0) > 0


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether CPU and GPU share one memory as on NVIDIA's Tegra."""
    family = root / "sys/devices/soc0/family"
    if (root / "etc/nv_tegra_release").exists():
        return True
    return family.exists() and "tegra" in family.read_text(encoding="utf-8", errors="replace").lower()


def process_peak(pid: int | str = "self", *, held_bytes: int = 0, proc: Path = PROC) -> tuple[int | None, str]:
    """Peak in bytes, with the name of the method; None with the reason where it cannot be read.

    `held_bytes`: largest VmRSS + VmSwap that a `Watcher` saw; 0 where nobody watched.

    >>> process_peak(held_bytes=1)[1], process_peak(held_bytes=10**15)[1], process_peak(pid=0)
    ('VmHWM', 'max(VmHWM, VmRSS + VmSwap)', (None, 'the process is gone, or /proc is hidden'))
    """
    now = status_bytes(pid, proc)
    hwm = now.get("VmHWM")
    held = max(held_bytes, held_now(now))
    if hwm is None and not held:
        return None, "/proc says no VmHWM" if now else "the process is gone, or /proc is hidden"
    if hwm is None:
        return held, "VmRSS + VmSwap, sampled (no VmHWM)"
    return max(hwm, held), "max(VmHWM, VmRSS + VmSwap)" if held > hwm else "VmHWM"


def held_now(fields: dict[str, int]) -> int:
    """VmRSS + VmSwap in bytes.

    >>> held_now({"VmRSS": 5, "VmSwap": 3}), held_now({})
    (8, 0)
    """
    return fields.get("VmRSS", 0) + fields.get("VmSwap", 0)


class Watcher:
    """Watches a process from a thread, where the kernel's own peak is not enough: with swap, or on a Jetson.

    Elsewhere it costs nothing: no thread is started. Use as a context manager around load and answers.
    """

    def __init__(
        self,
        pid: int | str = "self",
        *,
        interval_s: float = INTERVAL_S,
        proc: Path = PROC,
        jetson: bool | None = None,
    ) -> None:
        self.pid = pid
        self.proc = proc
        self.interval_s = interval_s
        self.jetson = is_jetson() if jetson is None else jetson
        self.watches = self.jetson or has_swap(proc)
        self.held_bytes = 0
        self.available_before = meminfo_bytes(proc).get("MemAvailable")
        self.available_least = self.available_before
        self._last_hwm: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> Watcher:
        self.look()
        if self.watches:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.look()

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            self.look()

    def look(self) -> None:
        """Take one sample."""
        fields = status_bytes(self.pid, self.proc)
        self.held_bytes = max(self.held_bytes, held_now(fields))
        self._last_hwm = fields.get("VmHWM", self._last_hwm)
        if self.jetson:
            available = meminfo_bytes(self.proc).get("MemAvailable")
            if available is not None and self.available_least is not None:
                self.available_least = min(available, self.available_least)

    def peak(self) -> tuple[int | None, str]:
        """Peak in bytes and the method, also after the process has ended."""
        now, method = process_peak(self.pid, held_bytes=self.held_bytes, proc=self.proc)
        if self._last_hwm is not None and (now is None or self._last_hwm > now):
            return self._last_hwm, "VmHWM, last seen"
        return now, method

    def shared_drop(self) -> tuple[int | None, str]:
        """How far MemAvailable fell, in bytes, where CPU and GPU share memory: all processes of the device together."""
        if not self.jetson:
            return None, "no shared memory to watch: not a Jetson"
        if self.available_before is None or self.available_least is None:
            return None, "/proc/meminfo says no MemAvailable"
        return self.available_before - self.available_least, "MemAvailable drop"


def as_values(watcher: Watcher) -> dict[str, int | str | None]:
    """What a memory line of the job says: peak_bytes, method, and shared_drop_bytes on a Jetson."""
    peak_bytes, method = watcher.peak()
    drop, _ = watcher.shared_drop()
    shared: dict[str, int | str | None] = {} if drop is None else {"shared_drop_bytes": drop}
    return {"peak_bytes": peak_bytes, "method": method, **shared}
