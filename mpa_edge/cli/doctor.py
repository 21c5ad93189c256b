"""Show what this machine has, what is missing, and how to install it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from mpa_edge import __version__
from mpa_edge.cli._options import echo, json_option, print_json, verbose_option
from mpa_edge.config import library

# the packages that an extra installs, without their own dependencies
EXTRAS = {
    "align": ("torch", "torchvision", "transformers", "peft", "trl", "accelerate", "datasets", "num2words"),
    "export": ("onnx", "onnxscript", "onnxruntime", "gguf"),
    "onnx": ("onnxruntime", "tokenizers"),
    "gguf": ("llama-cpp-python",),
    "openai": ("openai",),
    "ray": ("ray",),
}
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;#]+)")
GIB = 1 << 30


def pins(text: str) -> dict[str, str]:
    """Package -> tested version, from the text of constraints.txt.

    >>> pins("# why\\ntorch==2.14.1\\n")
    {'torch': '2.14.1'}
    """
    return {match[1].lower(): match[2] for line in text.splitlines() if (match := PIN.match(line))}


def installed(package: str) -> str | None:
    """Version of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpu() -> dict[str, Any]:
    """The accelerator that torch sees; `name` is null with a `reason` where there is none."""
    if installed("torch") is None:
        return {"name": None, "reason": "torch is not installed"}
    try:
        import torch

        if torch.cuda.is_available():
            device = torch.cuda.get_device_properties(0)
            return {"name": device.name, "memory_bytes": device.total_memory, "reason": None}
    except (ImportError, OSError, RuntimeError) as error:
        return {"name": None, "reason": f"torch cannot be used: {' '.join(str(error).split())[:200]}"}
    return {"name": None, "reason": "torch sees no CUDA device; everything runs on the CPU"}


def report() -> dict[str, Any]:
    """Everything that doctor knows: this machine, installed and tested versions, how to install what is missing."""
    import psutil

    constraints = library.root() / "constraints.txt"  # not in every wheel
    tested = pins(constraints.read_text(encoding="utf-8")) if constraints.is_file() else {}
    packages = dict.fromkeys(name for names in EXTRAS.values() for name in names)
    incomplete = [extra for extra, names in EXTRAS.items() if any(installed(name) is None for name in names)]
    memory = psutil.virtual_memory()
    return {
        "mpa_edge": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "disk_free_bytes": psutil.disk_usage(str(Path.cwd())).free,
        "gpu": gpu(),
        "packages": [{"package": name, "installed": installed(name), "tested": tested.get(name)} for name in packages],
        "missing": {extra: f"pip install 'mpa-edge[{extra}]'" for extra in incomplete},
    }


@click.command("doctor")
@click.option("--via", metavar="WAY", help="A device: ssh://USER@HOST[:PORT], adb://SERIAL.  [default: this machine]")
@click.option("--python", metavar="PROGRAM", help="Python on the device.  [default: python3]")
@click.option("--server", metavar="PATH", help="llama-server on the device.  [default: the one on PATH]")
@json_option
@verbose_option
def command(via: str | None, python: str | None, server: str | None, as_json: bool) -> None:
    """Show what this machine has, which packages differ from the tested ones, and how to install what is missing.

    With --via, what a device has for a benchmark and what it lacks; nothing is copied or installed there.

    \b
    Examples:
      $ mpa-edge doctor
      $ mpa-edge doctor --json
      $ mpa-edge doctor --via ssh://user@orin --python venv/bin/python
      $ mpa-edge doctor --via adb://SERIAL
    """
    if via is None and (python or server):
        raise click.UsageError("--python and --server are programs on a device: name it with --via")
    found = report() if via is None else report_of_device(via, python, server)
    if as_json:
        print_json(found)
        return
    show(found)


def report_of_device(via: str, python: str | None, server: str | None) -> dict[str, Any]:
    """What a device has. MpaError where it cannot be reached."""
    from mpa_edge.bench.host.doctor import device_report
    from mpa_edge.bench.transports.connect import connect

    with closing(connect(via)) as transport:
        transport.patience_s = 0.0  # a person waits for it
        return device_report(transport, python, server)


def show(found: dict[str, Any]) -> None:
    """Print a report, of this machine or of a device, in the same words."""
    python = f"Python {found['python']}" if found["python"] else f"no Python ({found['python_reason']})"
    echo(", ".join([found.get("device") or f"mpa-edge {found['mpa_edge']}", python, found["platform"]]))
    memory = f"{gib(found['memory_available_bytes'])} of {gib(found['memory_bytes'])} GiB free"
    place = "where bundles go" if "device" in found else "here"
    echo(f"cores {found['cores'] or '?'}, memory {memory}, disk {gib(found['disk_free_bytes'])} GiB free {place}")
    if "device" in found:
        echo(f"cpu: {found['cpu']}: {' '.join(found['cpu_features']) or 'no known instruction sets'}")
        echo(f"power mode: {found['power_mode'] or 'unknown'}, governor: {found['governor'] or 'unknown'}")
    echo(f"gpu: {found['gpu']['name'] or found['gpu']['reason']}")
    for row in found["packages"]:
        version, tested = row["installed"] or "missing", row["tested"]
        note = "" if tested is None or version in ("missing", tested) else f"  (tested with {tested})"
        if row["package"] == "onnxruntime" and found.get("providers"):
            note = f"  ({', '.join(found['providers'])})"
        if row["package"] == "llama-cpp-python" and found.get("llama_cpp_offload") is not None:
            note = "  (with a GPU backend)" if found["llama_cpp_offload"] else "  (CPU only)"
        if why := found.get("broken", {}).get(row["package"]):
            note = f"  (cannot be imported: {why})"
        echo(f"  {row['package']:18} {version}{note}")
    if server := found.get("llama_server"):
        what = f"{server['path']}: {server['version'] or 'says no version'}, {server['devices']}"
        echo(f"  {'llama-server':18} {what if server['path'] else 'missing'}")
    for what, line in found["missing"].items():
        echo(f"to get [{what}]: {line}" if what in EXTRAS else f"to get {what}: {line}")


def gib(n_bytes: int | None) -> str:
    """Gibibytes with one decimal; a question mark where they are not known."""
    return "?" if n_bytes is None else f"{n_bytes / GIB:.1f}"
