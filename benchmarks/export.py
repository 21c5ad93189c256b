"""What an export keeps of the gain.

    python benchmarks/export.py runs/benchmark/seed-0 --out docs/export.json
    python benchmarks/report.py

Every scheme, 4-bit ones and the 2-bit negative control included, of an aligned run of the built-in student on 1,000
questions that no training saw, against base and aligned in full precision. The same questions for all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
from common import machine, remember


@click.command()
@click.argument("run", type=click.Path(exists=True))
@click.option("--n", default=1000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(run: str, n: int, out: Path) -> None:
    """See the head of this file."""
    from mpa_edge.config import library

    schemes = library.names("schemes")
    asked = [part for name in schemes for part in ("--as", name)]
    program = [sys.executable, "-m", "mpa_edge", "export", run, *asked, "--accuracy", str(n), "--json"]
    result = json.loads(subprocess.run(program, stdout=subprocess.PIPE, check=True).stdout)
    command = f"python benchmarks/export.py {run} --out {out}"
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


if __name__ == "__main__":
    main()
