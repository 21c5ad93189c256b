"""What `mpa-edge align` gains on the built-in models, what it costs, and which choice of samples does it.

    python benchmarks/align.py --seeds 0,1,2 --ablation --out docs/results.json
    python benchmarks/report.py docs/results.json

What is measured, and why it can be trusted:
- gain: the CLI itself runs on fresh images of each seed (images, sampling, training); 1,000 questions that no training saw;
  the same questions for teacher, base and aligned; interval by bootstrap over images, exact McNemar test
- forgetting: base and aligned on 1,000 questions in the plain style, which the base student masters: no kind is excluded
- wall seconds: of the whole process, the start of Python included; peak memory: the kernel's VmHWM as the run reports it
- overhead: wall seconds of an in-process run outside `model.generate`, the vision tower, and the training and evaluation
  steps; everything else counts as overhead: parquet, hashing, images, progress, loading of models
- ablation: every arm trains for the same number of optimiser steps on the same annotations and verdicts
Not timed: the installation.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

ARMS: dict[str, tuple[str, ...]] = {
    "parity subset": ("level.replay=0.0",),
    "parity + replay": (),
    "all pseudo labels": ("level.subset=all",),
    "random, as many as the gap": ("level.subset=random",),
    "parity + replay, full fine-tuning": ("level.method=full", "level.learning_rate=2.0e-4"),
}
EVALUATION_SEED = 1_000_003


def overrides_of(seed: int) -> tuple[str, ...]:
    """Fresh images and a fresh training for a seed."""
    return (f"seed={seed}", f"images.render.seed={1000 + seed}", f"evaluate.seed={EVALUATION_SEED}")


def align(out: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """One run of the command line; its JSON document with the wall seconds of the process."""
    program = [sys.executable, "-m", "mpa_edge", "align", "minicharts", "--out", str(out), "--json"]
    started = time.monotonic()
    done = subprocess.run(
        [*program, *(part for one in overrides for part in ("--set", one))], stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout) | {"wall_s": round(time.monotonic() - started, 1)}


def retention(run_folder: Path, n: int) -> dict[str, Any]:
    """Base and aligned on n questions in the plain style, in all and by kind."""
    from mpa_edge.nursery.render import ANSWERS, render
    from mpa_edge.stages import evaluate as stage
    from mpa_edge.stages.run import open_run
    from mpa_edge.vlm import load

    run = open_run(str(run_folder))
    with tempfile.TemporaryDirectory() as temporary:
        folder = render(Path(temporary), n, EVALUATION_SEED + 1, "plain", answers_per_image=1)
        samples = stage.read_samples(folder / ANSWERS)
        made = {}
        for name, reference in (("base", run.recipe.student), ("aligned", str(run_folder / "merged"))):
            vlm = load(reference, name=name)
            made[name] = stage.predict(vlm, run.task, folder, samples, 16, run.recipe.images.max_pixels)
            vlm.close()
    kinds = stage.by_kind(made)
    return {
        "n": n,
        **{name: sum(row.score for row in rows) / n for name, rows in made.items()},
        "kinds": kinds,
    }


def ablate(source: Path, overrides: Sequence[str], steps: int) -> dict[str, Any]:
    """Every arm from the same annotations and verdicts, with the same number of steps."""
    results = {}
    for arm, changes in ARMS.items():
        folder = source.parent / f"arm-{len(results)}"
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("3-level", "merged", "evaluate", ".lock"))
        run = align(folder, (*overrides, *changes, f"level.max_steps={steps}", "level.patience=0"))
        counts = json.loads((folder / "3-level" / "manifest.json").read_text())["counts"]
        plain = retention(folder, 1000)
        results[arm] = {
            "samples": counts["train"], "aligned": run["accuracy"]["aligned"], "gain": run["gain"],
            "gain_ci95": run["gain_ci95"], "plain": plain["aligned"] - plain["base"], "seconds": run["seconds"]["level"],
        }  # fmt: skip
        click.echo(f"{arm}: {results[arm]}", err=True)
        shutil.rmtree(folder)
    return results


@contextmanager
def counting(spent: dict[str, float]) -> Iterator[None]:
    """Add up the seconds inside generate, the vision tower, and training and evaluation steps."""
    import torch
    from transformers import GenerationMixin, Idefics3Model
    from trl import SFTTrainer

    def timed(owner: Any, name: str) -> tuple[Any, str, Any]:
        inner = getattr(owner, name)
        spent.setdefault("_depth", 0)

        def outer(*args: Any, **kwargs: Any) -> Any:
            spent["_depth"] += 1
            started = time.monotonic()
            try:
                return inner(*args, **kwargs)
            finally:
                spent["_depth"] -= 1
                if not spent["_depth"]:  # what is called inside another timed function counts once
                    spent["inside_s"] = spent.get("inside_s", 0.0) + time.monotonic() - started

        setattr(owner, name, outer)
        return owner, name, inner

    places = ((GenerationMixin, "generate"), (Idefics3Model, "get_image_features"), (SFTTrainer, "training_step"),
              (SFTTrainer, "prediction_step"), (torch.optim.AdamW, "step"))  # fmt: skip
    saved = [timed(owner, name) for owner, name in places]
    try:
        yield
    finally:
        for owner, name, inner in saved:
            setattr(owner, name, inner)


def overhead(folder: Path, seed: int) -> dict[str, float]:
    """Wall seconds of a run in this process, and the share that is not the models' own work."""
    started = time.monotonic()
    from mpa_edge.stages.pipeline import run_stages
    from mpa_edge.stages.run import open_run

    spent: dict[str, float] = {}
    with counting(spent):
        run_stages(open_run("minicharts", out=str(folder), overrides=overrides_of(seed)))
    wall_s = time.monotonic() - started
    return {"wall_s": wall_s, "models_s": spent["inside_s"], "overhead": 1 - spent["inside_s"] / wall_s}


def machine() -> dict[str, Any]:
    """What it ran on."""
    model = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name")), "?"
    )
    return {"cores": len(os.sched_getaffinity(0)), "cpu": model}


@click.command()
@click.option("--seeds", default="0,1,2", show_default=True, help="Comma-separated.")
@click.option("--ablation", is_flag=True, help="Also the table of arms, on the first seed.")
@click.option("--no-overhead", is_flag=True, help="Leave out the in-process run.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON document here, else to stdout.")
@click.option("--set", "extra", multiple=True, help="Further overrides of the recipe.")
def main(seeds: str, ablation: bool, no_overhead: bool, out: Path | None, extra: tuple[str, ...]) -> None:
    """Run the benchmark."""
    result: dict[str, Any] = {"command": "python benchmarks/align.py " + " ".join(sys.argv[1:]), "machine": machine()}
    with tempfile.TemporaryDirectory() as temporary:
        folder, runs = Path(temporary), []
        for seed in map(int, seeds.split(",")):
            one = align(folder / f"seed-{seed}", (*overrides_of(seed), *extra))
            one |= {"seed": seed, "plain": retention(folder / f"seed-{seed}", 1000), "run": f"seed-{seed}"}
            one["kinds"] = json.loads((folder / f"seed-{seed}" / "evaluate" / "evaluate.json").read_text())["kinds"]
            runs.append(one)
            click.echo(f"seed {seed}: gain {one['gain']:+.3f}, p {one['p_mcnemar']:.1e}, {one['wall_s']} s", err=True)
        result |= {"runs": runs, "mean_gain": sum(one["gain"] for one in runs) / len(runs)}
        if ablation:
            first = int(seeds.split(",")[0])
            counts = json.loads((folder / f"seed-{first}" / "3-level" / "manifest.json").read_text())["counts"]
            result["ablation_steps"] = counts["steps"]
            result["ablation"] = ablate(folder / f"seed-{first}", (*overrides_of(first), *extra), counts["steps"])
        if not no_overhead:
            result["overhead"] = overhead(folder / "overhead", 77)
    text = json.dumps(result, indent=1) + "\n"
    if out:
        out.write_text(text)
    else:
        click.echo(text)


if __name__ == "__main__":
    main()
