"""One job on the device, through its Python or its llama-server."""

from __future__ import annotations

import re
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path

from mpa_edge.bench.device import protocol
from mpa_edge.bench.device.protocol import JobOrder
from mpa_edge.bench.device.runner import PACKAGES
from mpa_edge.bench.host.job import Job
from mpa_edge.bench.host.llama_server_run import LlamaServerRun
from mpa_edge.bench.host.llama_server_soak import LlamaServerSoak
from mpa_edge.bench.measurement import Reach
from mpa_edge.bench.results.lines import checked_lines
from mpa_edge.bench.results.probe import read_probe
from mpa_edge.bench.results.sensors import hottest
from mpa_edge.bench.transports.transport import Transport, last_line
from mpa_edge.errors import MpaError
from mpa_edge.progress import progress, say
from mpa_edge.runs.files import write_bytes
from mpa_edge.runs.paths import remove

SHORT_S, CHECK_S = 30.0, 120.0
# a job that is silent for longer counts as hung: loading and one answer fit into this
STALL_S = 1200.0
OLDEST = (3, 10)
# any Python since 2.7 runs this; what a wrapper or a startup file prints beside it does not count
ASK = f"""
import sys
print("mpa-edge python %d.%d" % sys.version_info[:2])
if sys.version_info >= {OLDEST}:
    import importlib.util
    print("mpa-edge lacks " + " ".join(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
"""
ANSWER = re.compile(rb"^mpa-edge python (\d{1,3})[.](\d{1,3})\r?\n(?:mpa-edge lacks ([\w ]*))?", re.MULTILINE)


def choose_runner(transport: Transport, format_: str, reach: Reach, fallback: str | None) -> tuple[str, bool]:
    """The program that answers there, and whether it is a llama-server rather than a Python with the runtime.

    `fallback`: the target's llama-server, used only where Python cannot answer. MpaError with what to install where
    neither is there.
    """
    program, server = reach.python or (sys.executable if transport.name == "local" else "python3"), reach.server
    if server is None:
        fault, fix = python_fault(transport, program, format_)
        if not fault:
            return program, False
        if fallback is None or format_ != "gguf" or reach.python is not None:
            other = ", or a llama-server with --server" if format_ == "gguf" else ""
            raise MpaError(f"on {transport.name}, {fault}: {fix}{other}")
        say(f"{transport.name}: {fault}; using llama-server instead")
    elif format_ != "gguf":
        raise MpaError(f"llama-server runs GGUF, not {format_}: choose a gguf scheme with --as, or omit --server")
    chosen = str(server or fallback)
    is_file = f"[ -f {shlex.quote(chosen)} ] || exit 2; [ -x {shlex.quote(chosen)} ]"
    if rc := transport.run(is_file, timeout_s=SHORT_S).rc:
        fault = (
            f"there is no program {chosen}: build llama-server for it and copy it there"
            if rc == 2
            else f"{chosen} may not be started: run chmod +x there, or copy it to a file system without noexec"
        )
        raise MpaError(f"on {transport.name}, {fault}, or give its path with --server")
    return chosen, True


def python_fault(transport: Transport, program: str, format_: str) -> tuple[str, str]:
    """What keeps a Python on the device from answering, and what fixes that; empty where nothing does."""
    packages = PACKAGES[format_]
    command = shlex.join([program, "-c", ASK, *packages])
    done = transport.run(command, timeout_s=CHECK_S)
    found = ANSWER.search(done.stdout)
    oldest = ".".join(map(str, OLDEST))
    install = (
        f"install Python {oldest} or newer as PYTHON there, run PYTHON -m pip install {' '.join(packages.values())}, "
        "and name it with --python PYTHON"
    )
    if found is None:
        if done.rc == 127:
            return f"there is no {program}", install
        said = last_line(done.stderr + b"\n" + done.stdout)
        return f"{program} does not work as a Python (exit {done.rc}: {said})", f"run it there to see why, or {install}"
    version = int(found[1]), int(found[2])
    if version < OLDEST:
        return f"{program} is Python {version[0]}.{version[1]}, and {oldest} is the oldest that works", install
    lacking = [name for name in (found[3] or b"").decode().split() if name in packages]
    if not lacking:
        return "", ""
    pip = f"{shlex.quote(program)} -m pip install {' '.join(packages[name] for name in lacking)}"
    return f"{program} lacks {', '.join(lacking)}", f"run {pip} there, or name another Python with --python"


def cool_down(transport: Transport, remote: str, below_c: float | None, max_s: int, poll_s: float = 5.0) -> None:
    """Wait until the device is cool, at most `max_s`; the report includes its temperature at the start."""
    deadline, told = time.monotonic() + max_s, False
    while below_c is not None:
        found = hottest(read_probe(probe(transport, remote)))
        if found is None or found[1] < below_c:
            return
        now_c = found[1]
        if time.monotonic() >= deadline:
            say(f"{transport.name}: still {now_c:.0f} C after {max_s} s; starting anyway")
            return
        if not told:
            say(f"{transport.name}: {now_c:.0f} C; waiting at most {max_s} s for {below_c:.0f} C")
            told = True
        time.sleep(poll_s)


def probe(transport: Transport, remote: str) -> str:
    """The device's description of itself, as JSON text."""
    return transport.checked("run probe.sh", f"sh {shlex.quote(remote)}/probe.sh", timeout_s=CHECK_S)


def fetch(transport: Transport, source: str, target: Path) -> None:
    """Copy a file from the device, if it is there."""
    remove(target)
    if transport.run(f"test -f {shlex.quote(source)}", timeout_s=SHORT_S).rc == 0:
        transport.pull(source, target, timeout_s=CHECK_S)


def run_python(transport: Transport, order: JobOrder, python: str, *, remote: str, folder: str, local: Path) -> None:
    """Start or join the job, and follow it to its end. MpaError where it did not answer everything.

    remote: folder of the bundle there; folder: of the job there; local: of the job's files here.
    """
    write_bytes(local / protocol.ORDER, protocol.to_json(order).encode())
    transport.push(local / protocol.ORDER, f"{folder}/{protocol.ORDER}", timeout_s=CHECK_S)
    stall_s = STALL_S if order.accelerators == ("cpu",) else protocol.BUILD_TIMEOUT_S + STALL_S
    job = Job(transport, folder)
    job.start(shlex.join(["sh", f"{remote}/bench.sh", folder, python]), local / protocol.OUT)
    if order.soak_s:
        follow_soak(transport, job, order.soak_s, local / protocol.OUT, stall_s)
    else:
        with progress(f"bench on {transport.name}", len(order.steps)) as advance:
            for line in protocol.read_lines(job.lines(local / protocol.OUT, stall_s=stall_s)):
                advance(line.kind == "answer")
    for name in (protocol.PROBE, protocol.PROBE_AFTER, protocol.WATCH, protocol.ERRORS):
        fetch(transport, f"{folder}/{name}", local / name)
    if not order.soak_s and (rc := job.poll().rc):
        found = checked_lines(local / protocol.OUT, order).lines
        failed = [line.values["reason"] for line in found if line.kind == "failed"]
        why = failed[-1] if failed else last_line(job.errors()).removeprefix("error: ")
        raise MpaError(f"on {transport.name}, the runner ended with {rc}: {why}; fix it and rerun")


def follow_soak(transport: Transport, job: Job, soak_s: float, out: Path, stall_s: float) -> None:
    """Show how a soak gets on; Ctrl-C ends it, and what was measured is kept."""
    shown, seconds = 0, 0.0
    try:
        with progress(f"seconds on {transport.name}", round(soak_s)) as advance:
            for line in protocol.read_lines(job.lines(out, stall_s=stall_s)):
                more = line.values.get("seconds") if line.kind == "sample" else None
                seconds += more if isinstance(more, int | float) else 0.0
                advance(min(round(seconds), round(soak_s)) - shown)
                shown = min(round(seconds), round(soak_s))
    except KeyboardInterrupt:
        say(f"stopping after {seconds:.0f} s: what was measured is kept")
        job.stop()
        fetch(transport, f"{job.folder}/{protocol.OUT}", out)


def run_server(
    transport: Transport, order: JobOrder, server: str, *, remote: str, folder: str, bundle: Path, local: Path
) -> None:
    """Ask a llama-server question by question while the device is watched. MpaError where nothing can be asked.

    remote: folder of the bundle there, bundle: here; folder: of the job there; local: of the job's files here.
    """
    if not (local / protocol.PROBE).is_file():
        write_bytes(local / protocol.PROBE, probe(transport, remote).encode())
    watch = Job(transport, f"{folder}/watch")
    watch.start(f"sh {shlex.quote(remote)}/probe.sh watch 1 >>{protocol.WATCH}")
    run = (LlamaServerSoak if order.soak_s else LlamaServerRun)(
        transport, order, bundle=bundle, remote_bundle=remote, program=server, job_root=f"{folder}/server"
    )
    try:
        run.run(local / protocol.OUT)
    finally:
        with suppress(MpaError):
            watch.stop()
    fetch(transport, f"{folder}/watch/{protocol.WATCH}", local / protocol.WATCH)
    write_bytes(local / protocol.PROBE_AFTER, probe(transport, remote).encode())
