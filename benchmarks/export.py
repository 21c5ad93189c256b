"""What an export keeps of the gain, how large it is, and what it costs to make.

    python benchmarks/export.py accuracy runs/benchmark/seed-0 --out docs/export.json
    python benchmarks/export.py shape smolvlm-256m --out docs/export.json
    python benchmarks/export.py shape smolvlm-500m --out docs/export.json
    python benchmarks/report.py

accuracy: every scheme, 4-bit ones and the 2-bit negative control included, of an aligned run of the built-in student on
1,000 questions that no training saw, against base and aligned in full precision. The same questions for all.
shape: a checkpoint of the real configuration with random weights (what it answers means nothing; sizes, seconds and
memory do), three ONNX and three GGUF schemes by one command; wall seconds of the whole process, verification included;
peak memory is the largest resident set of any process of the command (getrusage of waited-for children, and ours).
Not timed: making the checkpoint, the download of the converter.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from common import machine, remember

SHAPE_SCHEMES = ("onnx-fp32", "onnx-int8", "onnx-q4", "gguf-f16", "gguf-q8_0", "gguf-q4_0")


def export(source: str, *arguments: str) -> dict[str, Any]:
    """One export command in a process of its own: its JSON document, wall seconds and peak bytes of any process."""
    started = time.monotonic()
    program = [sys.executable, "-m", "mpa_edge", "export", source, *arguments, "--json"]
    done = subprocess.run(program, stdout=subprocess.PIPE, check=True)
    wall_s = round(time.monotonic() - started, 1)
    return json.loads(done.stdout) | {"wall_s": wall_s, "peak_bytes": children_peak_bytes()}


def children_peak_bytes() -> int:
    """Largest resident set among all processes that ended so far, grandchildren included."""
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


@click.group()
def main() -> None:
    """See the head of this file."""


@main.command()
@click.argument("run", type=click.Path(exists=True))
@click.option("--n", default=1000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def accuracy(run: str, n: int, out: Path) -> None:
    """All schemes on the held-out questions."""
    from mpa_edge.config import library

    schemes = library.names("schemes")
    result = export(run, *(part for name in schemes for part in ("--as", name)), "--accuracy", str(n))
    command = f"python benchmarks/export.py accuracy {run} --out {out}"
    titles = {name: library.load_scheme(name) for name in schemes}
    for one in result["exports"]:
        scheme = titles[one["scheme"]]
        manifest = json.loads((Path(one["path"]) / "manifest.json").read_text())
        one |= {
            "verdict": manifest["accuracy"]["verdict"],
            "components": scheme.components,
            "control": scheme.control,
            "path": Path(one["path"]).name,
        }
    remember(out, "accuracy", result | {"command": command, "machine": machine()})


@main.command()
@click.argument("name", type=click.Choice(["smolvlm-256m", "smolvlm-500m"]))
@click.option("--folder", type=click.Path(path_type=Path), help="Where it is built; kept.  [default: a temporary one]")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def shape(name: str, folder: Path | None, out: Path) -> None:
    """Seconds, memory and sizes on a real configuration."""
    with tempfile.TemporaryDirectory() as scratch:
        place = folder or Path(scratch)
        checkpoint = place / name
        if not (checkpoint / "config.json").is_file():
            program = [sys.executable, str(Path(__file__).with_name("shapes.py")), name, str(checkpoint)]
            subprocess.run(program, check=True, stdout=sys.stderr)
        builder_peak = children_peak_bytes()
        asked = (part for scheme in SHAPE_SCHEMES for part in ("--as", scheme))
        result = export(str(checkpoint), *asked, "--out", str(place / f"{name}-exports"), "--fresh")
    if result["peak_bytes"] <= builder_peak:
        raise click.ClickException("the builder took more memory than the export: give --folder and run it twice")
    for one in result["exports"]:
        one["path"] = Path(one["path"]).name
    fp32_bytes = sum(file["bytes"] for file in result["exports"][0]["files"].values())
    result |= {"fp32_bytes": fp32_bytes, "peak_over_fp32": round(result["peak_bytes"] / fp32_bytes, 3)}
    command = f"python benchmarks/export.py shape {name} --out {out}"
    remember(out, name, result | {"command": command, "machine": machine()})


if __name__ == "__main__":
    main()
