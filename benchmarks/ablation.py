"""Which samples do it: the parity subset against other choices, all with the same number of optimiser steps.

    python benchmarks/ablation.py runs/benchmark/seed-0 --out docs/ablation.json
    python benchmarks/report.py

Takes a finished run (benchmarks/align.py --keep). Every arm starts from that run's annotations and verdicts, trains for
as many steps as the run itself did, without early stopping, and answers the run's 1,000 held-out questions and 1,000 in
the plain style.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from align import machine, plain_style

ARMS: dict[str, tuple[str, ...]] = {
    "parity subset": ("level.subset=gap", "level.replay=0.0"),
    "all pseudo labels": ("level.subset=all",),
    "random, as many as the parity subset": ("level.subset=random",),
    "parity + replay": ("level.subset=gap",),
    "parity + replay, full fine-tuning": ("level.subset=gap", "level.method=full", "level.learning_rate=2.0e-4"),
}
SKIPPED = ("3-level", "merged", "evaluate", ".lock")


def run_arm(source: Path, changes: tuple[str, ...], steps: int, threads: int) -> dict[str, Any]:
    """Train, merge, and answer both sets of questions."""
    from mpa_edge.stages.pipeline import report, run_stages
    from mpa_edge.stages.run import open_run

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*SKIPPED))
        always = (f"level.max_steps={steps}", "level.patience=0", f"threads={threads}")
        run = open_run(str(folder), overrides=(*changes, *always))
        run_stages(run, ("level", "merge", "evaluate"))
        result, counts = report(run), json.loads((folder / "3-level" / "manifest.json").read_text())["counts"]
        plain = plain_style({"base": "nursery:student", "aligned": str(folder / "merged")}, 1000)
    assert result.accuracy is not None
    return {
        "samples": counts["train"], "aligned": result.accuracy.aligned, "gain": result.gain,
        "gain_ci95": result.gain_ci95, "plain": plain["aligned"] - plain["base"], "seconds": result.seconds["level"],
    }  # fmt: skip


@click.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--threads", default=2, show_default=True, help="CPU threads.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Write the JSON document here.")
def main(source: Path, threads: int, out: Path) -> None:
    """Run every arm on the annotations of the finished run SOURCE."""
    steps = json.loads((source / "3-level" / "manifest.json").read_text())["counts"]["steps"]
    result: dict[str, Any] = {
        "command": "python benchmarks/ablation.py " + " ".join(sys.argv[1:]), "machine": machine(), "steps": steps,
        "threads": threads, "arms": {},
    }  # fmt: skip
    for arm, changes in ARMS.items():
        result["arms"][arm] = run_arm(source, changes, steps, threads)
        click.echo(f"{arm}: {result['arms'][arm]}", err=True)
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
