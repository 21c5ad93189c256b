"""Peak memory of a process, and the page cache.

Standard library only, for Python 3.10 or newer: this file runs on the device.

- VmHWM counts every page that was ever resident, including mapped model files. The peak of a control group is not used:
  it misses pages that another process had already read
- swapped pages are not resident. With zram (most phones) a process shrinks while it still holds its memory, so where
  there is swap, VmRSS + VmSwap is sampled as well and the larger value counts
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")
KIB = 1024
INTERVAL_S = 0.05
CHECKED_EVERY_BYTES = 2**22


def status_bytes(pid: int | str = "self", proc: Path = PROC) -> dict[str, int]:
    """The Vm fields of a process in bytes; empty if the process is gone or hidden.

    >>> 0 < status_bytes()["VmRSS"] <= status_bytes()["VmHWM"]
    True
    """
    return _fields(proc / str(pid) / "status")


def _fields(path: Path) -> dict[str, int]:
    try:
        return kib_fields(path.read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return {}


def kib_fields(rows: Iterable[str]) -> dict[str, int]:
    """`Name:  123 kB` -> bytes; other rows are ignored.

    >>> kib_fields(["VmHWM:\\t  2 kB", "Name:\\tsh", "HugePages_Total: 0"])
    {'VmHWM': 2048}
    """
    found = {}
    for row in rows:
        name, _, value = row.partition(":")
        number, _, unit = value.strip().partition(" ")
        if unit == "kB" and number.isascii() and number.isdigit() and len(number) < 16:
            found[name] = int(number) * KIB
    return found


def gpu_bytes() -> int | None:
    """GPU memory of this process, as nvidia-smi reports it; None where it does not: no such GPU, or a Jetson's."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        rows = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    pairs = (row.split(",") for row in rows if row.count(",") == 1)
    own = [used.strip() for pid, used in pairs if pid.strip() == str(os.getpid())]
    return sum(int(used) << 20 for used in own if used.isdecimal()) or None


class PeakMemory:
    """Peak memory of a process over all samples that were added."""

    def __init__(self) -> None:
        self.hwm_bytes: int | None = None
        """Largest VmHWM; None where the system hides it."""
        self.held_bytes = 0
        """Largest VmRSS + VmSwap."""
        self.now_bytes: int | None = None
        """VmRSS + VmSwap of the last sample; None where there is none."""

    def add(self, fields: dict[str, int]) -> None:
        """Add a sample: the Vm fields of the process in bytes."""
        self.now_bytes = (fields.get("VmRSS", 0) + fields.get("VmSwap", 0)) or None
        self.held_bytes = max(self.held_bytes, self.now_bytes or 0)
        if "VmHWM" in fields:
            self.hwm_bytes = max(self.hwm_bytes or 0, fields["VmHWM"])

    def values(self) -> dict[str, int | str | None]:
        """`peak_bytes` and `method` of a memory line; peak_bytes is None where nothing could be read.

        >>> peak = PeakMemory()
        >>> peak.values()
        {'peak_bytes': None, 'method': 'no VmHWM in /proc'}
        >>> peak.add({"VmHWM": 10, "VmRSS": 8, "VmSwap": 4})
        >>> peak.values()
        {'peak_bytes': 12, 'method': 'max(VmHWM, VmRSS + VmSwap)'}
        """
        if self.hwm_bytes is None and not self.held_bytes:
            return {"peak_bytes": None, "method": "no VmHWM in /proc"}
        if self.hwm_bytes is None:
            return {"peak_bytes": self.held_bytes, "method": "VmRSS + VmSwap, sampled (no VmHWM)"}
        if self.held_bytes > self.hwm_bytes:
            return {"peak_bytes": self.held_bytes, "method": "max(VmHWM, VmRSS + VmSwap)"}
        return {"peak_bytes": self.hwm_bytes, "method": "VmHWM"}


class Watcher(PeakMemory):
    """Context manager around load and answers that records the peak memory of a process.

    Where there is swap, a thread samples the process every `interval_s`; elsewhere VmHWM is enough, without a thread.
    """

    def __init__(self, pid: int | str = "self", *, interval_s: float = INTERVAL_S, proc: Path = PROC) -> None:
        super().__init__()
        self.pid, self.proc, self.interval_s = pid, proc, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> Watcher:
        self.look()
        if _fields(self.proc / "meminfo").get("SwapTotal"):  # a swap partition, a swap file, or zram
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.look()

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            self.look()

    def look(self) -> None:
        """Take one sample."""
        self.add(status_bytes(self.pid, self.proc))


# --- the page cache ---------------------------------------------------------------------------------------------------


def drop_from_page_cache(paths: Iterable[Path]) -> bool:
    """Ask the kernel to drop files from its page cache; True only if it provably did.

    A file that another process has mapped stays, and so does one in a file system that lives in memory. The check reads
    with RWF_NOWAIT, which fails where a page is not in memory but makes Linux read it ahead: hence drop again after it.
    """
    files = list(paths)
    for path in files:
        _drop(path)
    cold = not any(is_in_memory(path) for path in files)
    for path in files:
        _drop(path)
    return cold and bool(files)


def _drop(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)  # a file that was just sent is dirty, and dirty pages stay
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def is_in_memory(path: Path) -> bool:
    """Whether one page in every 4 MiB can be read without waiting; True where the system cannot tell."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start in range(0, os.fstat(descriptor).st_size, CHECKED_EVERY_BYTES):
            try:
                os.preadv(descriptor, [bytearray(1)], start, os.RWF_NOWAIT)
            except BlockingIOError:
                continue
            return True
        return False
    except (AttributeError, OSError):
        return True
    finally:
        os.close(descriptor)
