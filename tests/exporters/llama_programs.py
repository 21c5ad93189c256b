"""The llama.cpp peer: `llama-mtmd-cli` of the pinned commit, compiled once into the user's cache.

Its source is inside the source package of llama-cpp-python, whose installed libraries it is linked with: two minutes of
a compiler. Every checkout shares the program, so it doesn't say where the libraries are: start it with
`LD_LIBRARY_PATH=LIBRARIES`. Remove the folder to have it made again.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llama_cpp

from mpa_edge.exporters.gguf import fetch
from tests.exporters.javascript import CACHE

COMPILER = ("g++", "-std=c++17", "-O0", "-w")
HEADERS = ("common", "include", "ggml/include", "tools/mtmd", "vendor")
SOURCES = ("common/*.cpp", "common/*/*.cpp", "vendor/cpp-httplib/httplib.cpp", "tools/mtmd/mtmd-cli.cpp")
LIBRARIES = Path(llama_cpp.__file__).parent / "lib"


@functools.cache
def mtmd_cli() -> Path:
    """The program. RuntimeError where there is no compiler."""
    if shutil.which("g++") is None:
        raise RuntimeError("the llama.cpp peer needs g++: install a C++ compiler")
    program = CACHE / f"llama-cpp-{fetch.VERSION}" / "llama-mtmd-cli"
    if not program.is_file():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            os.replace(_compiled(Path(work)), program)
    return program


def _compiled(work: Path) -> Path:
    with tarfile.open(fetch.download(work)) as archive:
        archive.extractall(work, filter="data")
    root = work / f"llama_cpp_python-{fetch.VERSION}" / "vendor" / "llama.cpp"
    info = root / "common" / "build-info.cpp"
    text = info.with_suffix(".cpp.in").read_text().replace("@LLAMA_BUILD_NUMBER@", "0")
    info.write_text(text)
    include = [f"-I{root / name}" for name in HEADERS]

    def compile_one(number: int, source: Path) -> str:
        out = str(work / f"{number}.o")
        subprocess.run([*COMPILER, *include, "-c", str(source), "-o", out], check=True)
        return out

    sources = sorted({path for pattern in SOURCES for path in root.glob(pattern)})
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, range(len(sources)), sources))
    named = [f"-l{name}" for name in ("mtmd", "llama", "ggml", "ggml-base")]
    program = work / "llama-mtmd-cli"
    command = [COMPILER[0], *objects, f"-L{LIBRARIES}", f"-Wl,-rpath-link,{LIBRARIES}", *named, "-lpthread"]
    subprocess.run([*command, "-o", str(program)], check=True)
    return program
