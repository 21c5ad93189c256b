"""What `mpa-edge plan` says of the built-in recipe against what it takes: seconds of each stage on this CPU.

    python benchmarks/plan.py --images 1000 --questions 1000 --out docs/plan.json

Every stage runs in this process, one after the other, with as many threads as are given, and the plan is made for this
machine as `--device here` measures it. Loading torch is not part of a stage. With one thread the processor's time of a
stage is what it would take on a quiet machine: where the clock on the wall shows much more, others were at work, and
the processor's time is compared.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from common import command, write
from PIL import Image

from mpa_edge.config.library import load_recipe
from mpa_edge.planning.estimate import DRAWN_PX, as_machine, make_plan, this_machine
from mpa_edge.runs.manifest import FOLDERS
from mpa_edge.stages.pipeline import run_stages
from mpa_edge.stages.run import Run, cpu_name
from mpa_edge.types import Request
from mpa_edge.vlm import load

BUSY = 1.1  # wall over processor time of one thread


def measured(run: Run) -> dict[str, dict[str, float]]:
    """Seconds of each stage, on the wall and of the processor."""
    import trl  # noqa: F401  (what is imported once in a run is no stage's time)

    teacher = load(run.recipe.teacher, name="teacher", device="cpu", threads=run.recipe.threads)
    teacher.answer([Request(Image.new("RGB", DRAWN_PX), "Ask about a value.", 4)])
    teacher.close()
    found = {}
    for name in FOLDERS:
        wall, cpu = time.perf_counter(), time.process_time()
        run_stages(run, (name,))
        found[name] = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        click.echo(f"{name}: {found[name]}", err=True)
    return found


def compared(planned: dict[str, float], took: dict[str, dict[str, float]], threads: int) -> dict[str, Any]:
    """Each stage: planned, measured and their ratio; and the sum."""
    walls, cpus = (sum(one[key] for one in took.values()) for key in ("wall_s", "cpu_s"))
    busy = threads == 1 and walls > BUSY * cpus
    key = "cpu_s" if busy else "wall_s"
    rows = {name: (planned[name], one[key]) for name, one in took.items()}
    rows["total"] = (sum(planned.values()), sum(one[key] for one in took.values()))
    stages = {name: {"planned_s": a, "measured_s": b, "ratio": a / b} for name, (a, b) in rows.items()}
    return {"compared": "processor time, others were at work" if busy else "wall time", "stages": stages}


@click.command()
@click.option("--images", default=1000, show_default=True)
@click.option("--questions", default=1000, show_default=True)
@click.option("--epochs", default=4.0, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures here.")
def main(images: int, questions: int, epochs: float, threads: int, out: Path | None) -> None:
    """Plan, run, compare."""
    values = {"images.render.n": images, "evaluate.n": questions, "level.epochs": epochs, "threads": threads}
    recipe = load_recipe("minicharts", [f"{key}={value}" for key, value in values.items()])
    device = this_machine(threads)
    made = make_plan(recipe, None, lambda: [as_machine("here", device)])
    planned = {name: stage.seconds for name, stage in made.machines[0].stages.items()}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run", recipe)
        took = measured(run)
        document = {
            "command": command("plan.py", sys.argv[1:], without=("--out",)),
            "set": [f"{key}={value}" for key, value in values.items()],
            "machine": {
                "cpu": cpu_name(),
                "threads": threads,
                "flops": device.flops,
                "memory_bandwidth": device.memory_bandwidth,
                "memory_bytes": device.memory_bytes,
            },
            **compared(planned, took, threads),
        }
    click.echo(json.dumps(document, indent=1))
    if out:
        write(out, document)


if __name__ == "__main__":
    main()
