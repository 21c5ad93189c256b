"""Makes .venv for `make demo` and `make test`: says what it will fetch and build, shows progress, resumes when rerun.

    python tools/install.py demo|test [--cpu]

`demo` installs what the demo needs, `test` adds what the tests need. The versions are those of constraints.txt. An
existing .venv is kept, and so is a torch in it that fits, such as PyTorch's CPU build. `--cpu` fetches that build.
Everything that pip says is in .venv/install.log. Only the standard library is used, since nothing else is there yet.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
NEED_BYTES = {"demo": 9_000_000_000, "test": 10_000_000_000}
OLDEST_TORCH = (2, 14)
EXTRAS = {"demo": "align,export,onnx,gguf", "test": "align,export,onnx,gguf,openai,ray,s3,dev"}
TICK_S = 0.5
LINE_EVERY_S = 15.0
COMPILED = re.compile(r"\[(\d+)/(\d+)\]")
WHEEL = r"(?:\S*/)?([A-Za-z0-9_.]+?)-(\d\S*?)-\S*\.whl(?:\.metadata)?"
DOWNLOADING = re.compile(rf"\s*(?:Downloading|Processing) {WHEEL}(?: \(([\d.]+ [kMG]B)\))?")


@dataclass(frozen=True)
class Step:
    """One call of pip."""

    title: str
    """What the user reads."""
    expects: str
    """How much and about how long."""
    arguments: tuple[str, ...]
    """Behind `pip install`."""
    advice: str
    """What to do when it fails."""


NETWORK = "check the network (a proxy?) and the free disk space, then rerun: what is there is kept"
# GCC before 11.5, 12.4, 13.3 and 14 breaks llama.cpp's code for Intel's AMX (its bug 114098)
WITHOUT_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
COMPILER = "gcc, g++ and cmake are needed and 2 GB of free memory; see .venv/install.log, then rerun"


def steps(what: str, constraints: Path, cpu: bool) -> Iterator[Step]:
    """The calls of pip, in order."""
    pinned = ("-c", str(constraints))
    if installed_torch() is None:
        build, where = ("CPU build", ("--index-url", CPU_WHEELS)) if cpu else ("with CUDA", ())
        size = "0.2 GB to fetch, 0.9 GB on disk" if cpu else "3.1 GB to fetch, 5.6 GB on disk"
        yield Step(f"PyTorch ({build})", size, (*pinned, *where, "torch", "torchvision"), NETWORK)
    if version_of("llama-cpp-python") is None:
        # -v: the compiler's progress is shown
        compiled = "70 MB to fetch, compiled here: about 10 minutes of CPU time, once (pip keeps the result)"
        yield Step("llama.cpp (llama-cpp-python)", compiled, ("-v", *pinned, "llama-cpp-python"), COMPILER)
    project = (*pinned, "-e", f"{ROOT}[{EXTRAS[what]}]")
    yield Step("mpa-edge and everything else", OTHERS[what], project, NETWORK)


OTHERS = {
    "demo": "0.2 GB to fetch, 0.7 GB on disk, about 1 minute",
    "test": "0.5 GB to fetch, 1.5 GB on disk, about 2 minutes",
}


def version_of(package: str) -> str | None:
    """Version of a package in .venv; None where it is not installed."""
    code = f"import importlib.metadata as m; print(m.version('{package}'))"
    return subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False).stdout.strip() or None


def installed_torch() -> str | None:
    """Version of the torch in .venv, None where there is none or an old one. Exits where it has no torchvision."""
    found = version_of("torch")
    if found is None or tuple(int(n) for n in re.findall(r"\d+", found)[:2]) < OLDEST_TORCH:
        return None
    if version_of("torchvision") is None:
        sys.exit(
            f"error: .venv has torch {found} but no torchvision, and both must be of one build: "
            f".venv/bin/pip install torchvision --index-url {CPU_WHEELS} (for a CPU build), then rerun"
        )
    return found


def constraints_for(torch: str | None, folder: Path) -> Path:
    """constraints.txt, without the pins of a torch that is there already: pip would replace a CPU build by CUDA's."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if torch:
        lines = [line for line in lines if not re.match(r"(torch|torchvision)==", line)]
    path = folder / "constraints.txt"
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def fetched_bytes(folder: Path) -> int:
    """Size of what pip has in its temporary folder."""
    total = 0
    for above, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # pip removes files meanwhile
                total += (Path(above) / name).stat().st_size
    return total


def compiler_flags(machine: str) -> dict[str, str]:
    """What CMake takes from the environment.

    >>> compiler_flags("aarch64")
    {}
    """
    if machine != "x86_64":
        return {}
    return {name: f"{os.environ.get(name, '')} {WITHOUT_AMX}".strip() for name in ("CFLAGS", "CXXFLAGS")}


def run(step: Step, temporary: Path) -> None:
    """One call of pip with its progress on the screen. Exits with advice where it fails."""
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *step.arguments]
    env = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"} | compiler_flags(platform.machine())
    started = time.monotonic()
    last_line_s = started
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        offset = LOG.stat().st_size
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
        now = "starting pip"
        try:
            while process.poll() is None:
                time.sleep(TICK_S)
                with LOG.open("rb") as said:
                    said.seek(offset)
                    new = said.read().rpartition(b"\n")[0]
                offset += len(new)
                now = what_now(new.decode(errors="replace"), now)
                if sys.stderr.isatty():
                    show(f"\r\033[K      {now}{amount(now, temporary)}, {clock(started)}")
                elif time.monotonic() - last_line_s > LINE_EVERY_S:
                    last_line_s = time.monotonic()
                    show(f"      {now}{amount(now, temporary)}, {clock(started)}\n")
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            sys.exit("\ninterrupted: rerun to resume")
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    if process.returncode:
        tail = LOG.read_text(errors="replace").splitlines()[-12:]
        show(clear + "".join(f"      | {line[:150]}\n" for line in tail))
        sys.exit(f"error: {step.title} could not be installed: {step.advice}")
    show(f"{clear}      done in {clock(started)}\n")


def what_now(said: str, before: str) -> str:
    """What pip is doing, from its newest lines.

    >>> what_now("Collecting torch\\n  Downloading torch-2.14.1-cp311-manylinux.whl (915.0 MB)\\n", "")
    'fetching torch 2.14.1 (915.0 MB)'
    >>> what_now("[12/345] Building CXX object x.o", "")
    'compiling file 12 of 345'
    """
    now = before
    for line in said.splitlines():
        if match := DOWNLOADING.match(line):
            name, version, size = match.groups()
            now = f"fetching {name} {version}" + (f" ({size})" if size else "")
        elif match := COMPILED.match(line.strip()):
            now = f"compiling file {match[1]} of {match[2]}"
        elif line.startswith("Collecting "):
            now = f"looking for {line.split()[1]}"
        elif line.startswith("Installing collected packages"):
            now = f"unpacking {line.count(',') + 1} packages"
        elif "Building wheel for" in line:
            now = f"building {line.split('Building wheel for ')[1].split()[0]}"
    return now


def amount(now: str, temporary: Path) -> str:
    """How much of a download has arrived."""
    return f", {fetched_bytes(temporary) / 1e6:,.0f} MB so far" if now.startswith("fetching") else ""


def clock(started: float) -> str:
    """Minutes and seconds since."""
    return "{}:{:02}".format(*divmod(int(time.monotonic() - started), 60))


def show(text: str) -> None:
    """On stderr, at once."""
    sys.stderr.write(text)
    sys.stderr.flush()


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU that torch could use."""
    return Path("/dev/nvidia0").exists() or Path("/dev/nvhost-gpu").exists() or shutil.which("nvidia-smi") is not None


def main(what: str, cpu: bool) -> None:
    """Make or complete .venv."""
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True)
    torch = installed_torch()
    with tempfile.TemporaryDirectory(dir=VENV, prefix="tmp-") as folder:
        todo = list(steps(what, constraints_for(torch, Path(folder)), cpu))
        show(f"Installing into .venv, {len(todo)} steps, once; a rerun resumes. Log: .venv/install.log\n")
        for n, step in enumerate(todo, 1):
            show(f"  {n}/{len(todo)} {step.title}: {step.expects}\n")
        if torch:
            show(f"  PyTorch {torch} is there already and is kept\n")
        elif not cpu and not has_gpu():
            show(f"  No NVIDIA GPU here. PyTorch's CPU build is 2.9 GB less to fetch: make {what} TORCH=cpu\n")
        free = shutil.disk_usage(VENV).free
        if not torch and not cpu and free < NEED_BYTES[what]:
            sys.exit(
                f"error: {free / 1e9:.1f} GB free, {NEED_BYTES[what] / 1e9:.0f} GB needed: free some space, then rerun"
            )
        for n, step in enumerate(todo, 1):
            show(f"  {n}/{len(todo)} {step.title}\n")
            run(step, Path(folder))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in EXTRAS:
        sys.exit(__doc__)
    main(sys.argv[1], "--cpu" in sys.argv)
