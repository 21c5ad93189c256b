"""llama.cpp's code for Intel's AMX as an older GCC compiles it: it crashes, so it is found before it runs.

GCC before 11.5, 12.4, 13.3 and 14 drops most of a tile configuration that is written before it is loaded
(gcc.gnu.org/bugzilla, 114098). On a CPU with AMX the first matrix product then ends the process.
"""

from __future__ import annotations

import re
from pathlib import Path

from mpa_edge.errors import MpaError

CPU_INFO = Path("/proc/cpuinfo")
COMPILER = re.compile(rb"GCC: \([^)]*\) (\d+)\.(\d+)")
AMX = b"ggml_backend_amx_mul_mat"
MENDED = {11: 5, 12: 4, 13: 3}
"""Major version of GCC -> the first minor version without the fault; 14 and later never had it."""
WITHOUT_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
REBUILD = (
    f'CFLAGS="{WITHOUT_AMX}" CXXFLAGS="{WITHOUT_AMX}" '
    "pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python=={version}"
)


def faulty_compiler(library: bytes) -> str | None:
    """The GCC that compiled a library's AMX code wrongly, such as "12.2"; None where there is no such code.

    >>> faulty_compiler(b"ggml_backend_amx_mul_mat GCC: (Debian 12.2.0-14) 12.2.0")
    '12.2'
    >>> faulty_compiler(b"ggml_backend_amx_mul_mat GCC: (GNU) 14.1.0")
    """
    match = COMPILER.search(library)
    if AMX not in library or match is None:
        return None
    major, minor = int(match[1]), int(match[2])
    return f"{major}.{minor}" if major < min(MENDED) or minor < MENDED.get(major, 0) else None


def refuse_miscompiled(folder: Path, version: str) -> None:
    """MpaError with the command that builds llama-cpp-python again, where its libraries in `folder` crash here."""
    if not CPU_INFO.is_file() or "amx_int8" not in CPU_INFO.read_text(encoding="utf-8", errors="replace"):
        return
    for path in folder.glob("*ggml-cpu*.so"):
        if compiler := faulty_compiler(path.read_bytes()):
            raise MpaError(
                f"llama-cpp-python was compiled by GCC {compiler}, whose code for this CPU's AMX crashes: "
                f"build it again with {REBUILD.format(version=version)}"
            )
