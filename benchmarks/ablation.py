"""What each option of a recipe is worth: every option against the recipe as it stands, one at a time, over seeds.

    python benchmarks/align.py --seeds 0,1,2 --keep runs/benchmark --out docs/results.json
    python benchmarks/ablation.py runs/benchmark --out docs/ablation.json
    python benchmarks/report.py

Takes the finished runs of benchmarks/align.py (`seed-0`, `seed-1`, ...). Every arm starts from such a run and redoes
what its changed keys redo: a selection arm only trains, an annotation arm asks the teacher again. All arms train for
the same number of optimiser steps, in bf16, without early stopping, and answer the run's held-out questions and 1,000
in the plain style.

Results are written to --out after each arm and seed. Rerun the command to resume, also inside an arm; an arm whose keys
have changed is measured again, and `--fresh` measures everything again. Seeds may run side by side, each a command of
its own with the same --out. An arm that only trains takes about two minutes of one core.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import click
from align import plain_style
from common import Document, machine, read, write
from filelock import FileLock

STAGES = ("annotate", "identify", "level", "merge")
SKIPPED = ("3-level", "merged", "evaluate", "exports", "bench", ".lock")
REFERENCE = "parity + replay"
STEPS = 120
# name -> what it changes in the recipe, as `--set` takes it
ARMS: dict[str, tuple[str, ...]] = {
    REFERENCE: ("level.subset=gap",),
    # which samples
    "parity subset": ("level.subset=gap", "level.replay=0.0"),
    "all pseudo labels": ("level.subset=all",),
    "random, as many as the parity subset": ("level.subset=random",),
    "parity + replay, full fine-tuning": ("level.subset=gap", "level.method=full", "level.learning_rate=2.0e-4"),
    "as published": ("annotate.samples_per_image=1", "level.replay=0.0", "level.strength=1.0"),
    # better pseudo labels
    "one question an image": ("annotate.samples_per_image=1",),
    "ten questions an image": ("annotate.samples_per_image=10",),
    "three votes": ("annotate.votes=3",),
    # how they are learned
    "twice the replay": ("level.replay=1.0",),
    "the whole change kept": ("level.strength=1.0",),
}


def measure(changes: tuple[str, ...], source: Path, folder: Path, threads: int, plain: int) -> Document:
    """One arm and seed; resumes a run in `folder`."""
    from mpa_edge.evaluation.answer_log import AnswerLog, answer_all
    from mpa_edge.evaluation.predict import recipe_spec
    from mpa_edge.metrics.paired import bootstrap_ci95, mean
    from mpa_edge.runs.parquet import read_rows
    from mpa_edge.stages.evaluate import QUESTIONS, STAGE
    from mpa_edge.stages.pipeline import run_stages
    from mpa_edge.stages.run import open_run
    from mpa_edge.types import Prediction
    from mpa_edge.vlm import load

    if not (folder / "run.json").is_file():
        copy_run(source, folder)
    always = (f"level.max_steps={STEPS}", "level.precision=bf16", "level.patience=0", f"threads={threads}")
    run = open_run(str(folder), overrides=(*changes, *always))
    run_stages(run, STAGES)
    recipe = run.recipe
    before = read_rows(source / "evaluate" / "predictions-base.parquet", Prediction)
    vlm = load(str(folder / "merged"), name="aligned", threads=threads, batch_size=recipe.evaluate.batch_size)
    log = AnswerLog(recipe_spec(recipe, run.stage_folder(STAGE) / QUESTIONS))
    answer_all(vlm, log)
    vlm.close()
    after = log.predictions("aligned")
    gains = [a.score - b.score for a, b in zip(after, before, strict=True)]
    interval = bootstrap_ci95(gains, [row.image_id for row in before], resamples=2000, seed=recipe.seed)
    counts = {stage: read(folder / stage / "manifest.json") for stage in ("1-annotate", "2-identify", "3-level")}
    kept = plain_style({"base": "nursery:student", "aligned": str(folder / "merged")}, plain)
    return {
        "annotated": counts["1-annotate"]["counts"]["annotated"],
        "gap": counts["2-identify"]["counts"]["gap"],
        "samples": counts["3-level"]["counts"]["train"],
        "seconds": counts["3-level"]["seconds"],
        "aligned": mean([row.score for row in after]),
        "gain": mean(gains),
        "gain_ci95": list(interval),
        "plain": kept["aligned"] - kept["base"],
    }


def copy_run(source: Path, folder: Path) -> None:
    """A copy of a finished run without what is made again; an interrupted copy leaves nothing under the name."""
    building = folder.with_name(f".{folder.name}")
    shutil.rmtree(building, ignore_errors=True)
    shutil.copytree(source, building, ignore=shutil.ignore_patterns(*SKIPPED))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(building, folder)


def seeds_of(document: Document, arm: str) -> Document:
    """What is known of an arm, by seed; nothing of it counts where its keys were others."""
    known = document.get("arms", {}).get(arm)
    return dict(known["seeds"]) if known is not None and known["set"] == list(ARMS[arm]) else {}


def add(out: Path, arm: str, seed: str, row: Document, options: str) -> None:
    """One more result in the document, which the commands of other seeds may be writing as well."""
    with FileLock(out.with_name(f".{out.name}.lock")):
        known = read(out)
        arms = known.get("arms", {}) | {arm: {"set": list(ARMS[arm]), "seeds": seeds_of(known, arm) | {seed: row}}}
        every = sorted({seed for one in arms.values() for seed in one["seeds"]})
        order = {name: i for i, name in enumerate(ARMS)}
        new = {
            "arms": dict(sorted(arms.items(), key=lambda item: order.get(item[0], len(order)))),
            "command": f"python benchmarks/ablation.py {options} --seeds {','.join(every)} --out {out}",
            "machine": machine(),
            "steps": STEPS,
            "reference": REFERENCE,
        }
        write(out, known | new)


@click.command()
@click.argument("sources", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--seeds", default="0,1,2", show_default=True, help="Comma-separated.")
@click.option("--arms", default="", help="Only those whose names hold one of these words, comma-separated.")
@click.option("--threads", default=2, show_default=True, help="CPU threads.")
@click.option("--plain", default=1000, show_default=True, help="Questions in the plain style.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/ablation"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Write the JSON document here.")
@click.option("--fresh", is_flag=True, help="Measure again what --out has already.")
def main(sources: Path, seeds: str, arms: str, threads: int, plain: int, work: Path, out: Path, fresh: bool) -> None:
    """Run every arm from the finished runs SOURCES/seed-N."""
    words = [word.strip() for word in arms.split(",") if word.strip()]
    chosen = [name for name in ARMS if not words or any(word in name for word in words)]
    if not chosen:
        raise click.ClickException(f"no arm is called '{arms}': use {', '.join(ARMS)}")
    for seed in seeds.split(","):
        for arm in chosen:
            if not fresh and seed in seeds_of(read(out), arm):
                continue
            folder = work / f"seed-{seed}" / arm.replace(" ", "-").replace(",", "")
            folder.parent.mkdir(parents=True, exist_ok=True)
            row = measure(ARMS[arm], sources / f"seed-{seed}", folder, threads, plain)
            add(out, arm, seed, row, f"{sources} --threads {threads} --plain {plain}")
            shutil.rmtree(folder)
            click.echo(f"seed {seed}, {arm}: {row}", err=True)


def over_reference(row: Document, reference: Document, key: str) -> list[float]:
    """Difference to the reference on each seed that both have."""
    shared = sorted(row["seeds"].keys() & reference["seeds"].keys())
    pairs: list[tuple[Any, Any]] = [(row["seeds"][s].get(key), reference["seeds"][s].get(key)) for s in shared]
    return [one - other for one, other in pairs if one is not None and other is not None]


if __name__ == "__main__":
    main()
