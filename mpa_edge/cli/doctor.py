"""Show what this machine has, what is missing, and how to install it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
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
@json_option
@verbose_option
def command(as_json: bool) -> None:
    """Show what this machine has, which packages differ from the tested ones, and how to install what is missing.

    \b
    Examples:
      $ mpa-edge doctor
      $ mpa-edge doctor --json
    """
    found = report()
    if as_json:
        print_json(found)
        return
    memory = f"{found['memory_available_bytes'] / GIB:.1f} of {found['memory_bytes'] / GIB:.1f} GiB free"
    echo(f"mpa-edge {found['mpa_edge']}, Python {found['python']}, {found['platform']}")
    echo(f"cores {found['cores']}, memory {memory}, disk {found['disk_free_bytes'] / GIB:.1f} GiB free here")
    echo(f"gpu: {found['gpu']['name'] or found['gpu']['reason']}")
    for row in found["packages"]:
        version, tested = row["installed"] or "missing", row["tested"]
        note = "" if tested is None or version in ("missing", tested) else f"  (tested with {tested})"
        echo(f"  {row['package']:18} {version}{note}")
    for extra, line in found["missing"].items():
        echo(f"to get [{extra}]: {line}")
