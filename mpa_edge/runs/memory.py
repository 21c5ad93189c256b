"""Peak memory of this process."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far; on Linux with what was swapped out, 0 where nobody says."""
    with suppress(OSError):
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        kib = {name: int(lines.get(name, "0").split()[0]) for name in ("VmHWM", "VmRSS", "VmSwap")}
        return 1024 * max(kib["VmHWM"], kib["VmRSS"] + kib["VmSwap"])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak
