"""Whether OpenVINO's plugin has a device here: it takes Intel's only."""

from __future__ import annotations

from pathlib import Path

INTEL = "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
