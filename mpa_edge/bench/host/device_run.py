"""On the device: which runtime is there, the job, and what it leaves behind."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mpa_edge.bench.device.runner import PACKAGES
from mpa_edge.bench.results.sensors import hottest, read_probe
from mpa_edge.bench.transports import Transport
from mpa_edge.errors import MpaError
from mpa_edge.progress import say

SHORT_S, CHECK_S = 30.0, 120.0
FIND = "import importlib.util as u, sys; print(*(m for m in sys.argv[1:] if u.find_spec(m) is None))"


@dataclass(frozen=True)
class Runner:
    """What answers on the device."""

    python: str | None
    """Its Python, with all that the format needs; None where a server answers."""
    server: str | None
    """Its llama-server; None where Python answers."""


def choose_runner(
    transport: Transport, format_: str, *, python: str | None, server: str | None, fallback: str | None
) -> Runner:
    """Python where it has the runtime, else a llama-server for GGUF. MpaError with what to install where neither is.

    `server` was asked for; `fallback` is the target's own, taken only where Python cannot.
    """
    if server:
        return Runner(None, _checked_server(transport, server, format_))
    program = python or (sys.executable if transport.name == "local" else "python3")
    missing = missing_modules(transport, program, format_)
    if not missing:
        return Runner(program, None)
    if fallback and format_ == "gguf" and python is None:
        say(f"{transport.name}: {missing}; llama-server answers instead")
        return Runner(None, _checked_server(transport, fallback, format_))
    extra = "onnx,gguf" if format_ == "hybrid" else format_
    other = ", or a llama-server with --server" if format_ == "gguf" else ""
    raise MpaError(
        f"on {transport.name}, {missing}: install it there with {program} -m pip install 'mpa-edge[{extra}]', "
        f"or name another Python with --python{other}"
    )


def missing_modules(transport: Transport, program: str, format_: str) -> str:
    """What a Python on the device lacks for a format, in words; empty where it lacks nothing."""
    names = sorted(PACKAGES[format_])
    command = f"{shlex.quote(program)} -c {shlex.quote(FIND)} {' '.join(names)}"
    done = transport.run(command, timeout_s=CHECK_S)
    if done.rc in (126, 127):
        return f"there is no {program}"
    if done.rc:
        return f"{program} does not start ({_last_line(done.stderr)})"
    lacking = done.stdout.decode(errors="replace").split()
    return f"{program} lacks {', '.join(lacking)}" if lacking else ""


def _checked_server(transport: Transport, path: str, format_: str) -> str:
    if format_ != "gguf":
        raise MpaError(f"llama-server runs GGUF, not {format_}: choose a gguf scheme with --as, or leave --server out")
    if transport.run(f"test -x {shlex.quote(path)}", timeout_s=SHORT_S).rc:
        raise MpaError(
            f"on {transport.name}, there is no program {path}: build llama-server for it and copy it there, "
            "or name its place with --server"
        )
    return path


def probe(transport: Transport, remote: str) -> str:
    """What the device says of itself, as JSON text."""
    done = transport.run(f"sh {shlex.quote(remote)}/probe.sh", timeout_s=CHECK_S)
    if done.rc:
        raise MpaError(f"{transport.name} cannot say what it is ({_last_line(done.stderr)}): run again with -v")
    return done.stdout.decode(errors="replace")


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"


def write_remote(transport: Transport, local: Path, text: str, target: str) -> None:
    """A small text file on the device."""
    local.parent.mkdir(parents=True, exist_ok=True)
    local.write_text(text, encoding="utf-8")
    transport.push(local, target, timeout_s=CHECK_S)


def fetch(transport: Transport, source: str, target: Path) -> None:
    """A whole file of the device, if it is there."""
    target.unlink(missing_ok=True)
    if transport.run(f"test -f {shlex.quote(source)}", timeout_s=SHORT_S).rc == 0:
        transport.pull(source, target, timeout_s=CHECK_S)


def cool_down(transport: Transport, remote: str, below_c: float | None, longest_s: int, poll_s: float = 5.0) -> None:
    """Wait until the device is cool, never longer than `longest_s`; the report says how warm it was in the end."""
    deadline, told = time.monotonic() + longest_s, False
    while below_c is not None:
        found = hottest(read_probe(probe(transport, remote)))
        if found is None or found[1] < below_c:
            return None
        now_c = found[1]
        if time.monotonic() >= deadline:
            return say(f"{transport.name}: still {now_c:.0f} C after {longest_s} s; it begins all the same")
        if not told:
            say(f"{transport.name}: {now_c:.0f} C; waiting at most {longest_s} s for {below_c:.0f} C")
            told = True
        time.sleep(poll_s)
    return None
    return ""
