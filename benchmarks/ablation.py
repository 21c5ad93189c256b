"""Which samples and which lessons do it: every option against the recipe as it stands, one at a time, over seeds.

    python benchmarks/align.py --seeds 0,1,2 --keep runs/benchmark --out docs/results.json
    python benchmarks/ablation.py runs/benchmark --out docs/ablation.json
    python benchmarks/report.py

Takes the finished runs of benchmarks/align.py (`seed-0`, `seed-1`, ...). Every arm starts from such a run and redoes
what its changed keys redo: a selection arm only trains, an annotation arm asks the teacher again. All arms train for
the same number of optimiser steps, in bf16, without early stopping, and answer the run's held-out questions and 1,000
in the plain style. The first arm is also exported, and answers as a device would have it.

What is measured lands in --out after each arm and seed. The same command goes on where it was, also inside an arm; an
arm whose keys have changed is measured again, and `--fresh` begins anew. Seeds may run side by side, each a command of
its own with the same --out. An arm that only trains takes about two minutes of one core.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from align import machine, plain_style
from filelock import FileLock

if TYPE_CHECKING:
    from mpa_edge.stages.run import Run

STAGES = ("annotate", "identify", "level", "merge")
SKIPPED = ("3-level", "merged", "evaluate", "exports", "bench", ".lock")
REFERENCE = "parity + replay"
# where a device's precision costs the built-in student something: four bits, rounded to the nearest
TARGET, SCHEME = "cpu", "onnx-q4"
STEPS = 120


@dataclass(frozen=True)
class Arm:
    """One line of the table."""

    name: str
    changes: tuple[str, ...]
    """What it changes in the recipe, as `--set` takes it."""
    exported: bool = False
    """Whether it also answers as an export."""


ARMS = (
    Arm(REFERENCE, ("level.subset=gap",), exported=True),
    # which samples
    Arm("parity subset", ("level.subset=gap", "level.replay=0.0")),
    Arm("all pseudo labels", ("level.subset=all",)),
    Arm("random, as many as the parity subset", ("level.subset=random",)),
    Arm("parity + replay, full fine-tuning", ("level.subset=gap", "level.method=full", "level.learning_rate=2.0e-4")),
    Arm("as published", ("annotate.samples_per_image=1", "level.replay=0.0", "level.strength=1.0")),
    # better pseudo labels
    Arm("one question a picture", ("annotate.samples_per_image=1",)),
    Arm("ten questions a picture", ("annotate.samples_per_image=10",)),
    Arm("three votes", ("annotate.votes=3",)),
    # which of them, in which order, with what loss
    Arm("kinds balanced", ("level.balance_kinds=true",)),
    Arm("answers capped", ("level.answer_share=0.05",)),
    Arm("questions capped", ("level.question_share=0.02",)),
    Arm("twice the replay", ("level.replay=1.0",)),
    Arm("the whole change kept", ("level.strength=1.0",)),
    Arm("easy samples first", ("level.curriculum=true",)),
    Arm("distilled", ("level.distill=1.0",)),
)


def measure(arm: Arm, source: Path, folder: Path, threads: int, plain: int) -> dict[str, Any]:
    """Everything about one arm and seed; goes on where a run in `folder` was left."""
    from mpa_edge.stages.pipeline import run_stages
    from mpa_edge.stages.run import open_run

    if not (folder / "run.json").is_file():
        copied(source, folder)
    always = (f"level.max_steps={STEPS}", "level.precision=bf16", "level.patience=0", f"threads={threads}")
    run = open_run(str(folder), overrides=(*arm.changes, *always))
    run_stages(run, STAGES)
    counts = {stage: manifest(folder, stage)["counts"] for stage in ("1-annotate", "2-identify", "3-level")}
    result = {
        "annotated": counts["1-annotate"]["annotated"],
        "gap": counts["2-identify"]["gap"],
        "samples": counts["3-level"]["train"],
        "seconds": manifest(folder, "3-level")["seconds"],
    } | against_base(run, source, str(folder / "merged"))
    kept = plain_style({"base": "nursery:student", "aligned": str(folder / "merged")}, plain)
    return result | {"plain": kept["aligned"] - kept["base"]} | (as_exported(run, source) if arm.exported else {})


def copied(source: Path, folder: Path) -> None:
    """A copy of a finished run without what is made anew; a kill in between leaves nothing under the name."""
    building = folder.with_name(f".{folder.name}")
    shutil.rmtree(building, ignore_errors=True)
    shutil.copytree(source, building, ignore=shutil.ignore_patterns(*SKIPPED))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(building, folder)


def manifest(folder: Path, stage: str) -> dict[str, Any]:
    """The manifest of a finished stage."""
    return dict(json.loads((folder / stage / "manifest.json").read_text()))


def against_base(run: Run, source: Path, model: str, prefix: str = "") -> dict[str, Any]:
    """Accuracy of a model on the run's held-out questions, and its gain over the student of the finished run."""
    from mpa_edge.evaluation.answer_log import AnswerLog, answer_all
    from mpa_edge.evaluation.predict import recipe_spec
    from mpa_edge.metrics.paired import bootstrap_ci95, mean
    from mpa_edge.runs.parquet import read_rows
    from mpa_edge.stages.evaluate import QUESTIONS, STAGE
    from mpa_edge.types import Prediction
    from mpa_edge.vlm import load

    recipe = run.recipe
    log = AnswerLog(recipe_spec(recipe, run.stage_folder(STAGE) / QUESTIONS))
    before = read_rows(source / "evaluate" / "predictions-base.parquet", Prediction)
    vlm = load(model, name="aligned", threads=recipe.threads, batch_size=recipe.evaluate.batch_size)
    answer_all(vlm, log)
    vlm.close()
    after = log.predictions("aligned")
    difference = [a.score - b.score for a, b in zip(after, before, strict=True)]
    interval = bootstrap_ci95(difference, [row.image_id for row in before], resamples=2000, seed=recipe.seed)
    return {
        f"{prefix}aligned": mean([row.score for row in after]),
        f"{prefix}gain": mean(difference),
        f"{prefix}gain_ci95": list(interval),
    }


def as_exported(run: Run, source: Path) -> dict[str, Any]:
    """The same of what a device would get."""
    from mpa_edge.cli.export import make_order
    from mpa_edge.exporters.pipeline import run_export

    out = str(run.folder / "exports")
    order = make_order(str(run.folder), TARGET, (SCHEME,), out, run.recipe.threads, None, False)
    return against_base(run, source, str(run_export(order)[0]), "exported_")


def chosen(names: str) -> list[Arm]:
    """The arms whose names hold one of some words; all where there are none."""
    words = [word.strip() for word in names.split(",") if word.strip()]
    found = [arm for arm in ARMS if not words or any(word in arm.name for word in words)]
    if not found:
        raise click.ClickException(f"no arm is called '{names}': use {', '.join(arm.name for arm in ARMS)}")
    return found


def document(out: Path) -> dict[str, Any]:
    """What was measured before, or an empty document."""
    return dict(json.loads(out.read_text())) if out.is_file() else {"arms": {}}


def seeds_of(document: dict[str, Any], arm: Arm) -> dict[str, Any]:
    """What is known of an arm, by seed; nothing of it counts where its keys were others."""
    known = document["arms"].get(arm.name)
    return dict(known["seeds"]) if known is not None and known["set"] == list(arm.changes) else {}


def add(out: Path, arm: Arm, seed: str, row: dict[str, Any], options: str) -> None:
    """One more result in the document, which the commands of other seeds may be writing as well."""
    with FileLock(out.with_name(f".{out.name}.lock")):
        known = document(out)
        seeds = seeds_of(known, arm) | {seed: row}
        known["arms"][arm.name] = {"set": list(arm.changes), "seeds": seeds}
        every = sorted({seed for one in known["arms"].values() for seed in one["seeds"]})
        command = f"python benchmarks/ablation.py {options} --seeds {','.join(every)} --out {out}"
        write(out, known | {"command": command, "machine": machine(), "steps": STEPS, "reference": REFERENCE})


@click.command()
@click.argument("sources", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--seeds", default="0,1,2", show_default=True, help="Comma-separated.")
@click.option("--arms", default="", help="Only those whose names hold one of these words, comma-separated.")
@click.option("--threads", default=2, show_default=True, help="CPU threads.")
@click.option("--plain", default=1000, show_default=True, help="Questions in the plain style.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/ablation"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Write the JSON document here.")
@click.option("--fresh", is_flag=True, help="Forget what --out knows.")
def main(sources: Path, seeds: str, arms: str, threads: int, plain: int, work: Path, out: Path, fresh: bool) -> None:
    """Run every arm from the finished runs SOURCES/seed-N."""
    if fresh:
        out.unlink(missing_ok=True)
    for seed in seeds.split(","):
        for arm in chosen(arms):
            if seed in seeds_of(document(out), arm):
                continue
            folder = work / f"seed-{seed}" / arm.name.replace(" ", "-").replace(",", "")
            folder.parent.mkdir(parents=True, exist_ok=True)
            row = measure(arm, sources / f"seed-{seed}", folder, threads, plain)
            add(out, arm, seed, row, f"{sources} --threads {threads} --plain {plain}")
            shutil.rmtree(folder)
            click.echo(f"seed {seed}, {arm.name}: {row}", err=True)


def write(out: Path, result: dict[str, Any]) -> None:
    """The whole document or the one before it."""
    order = {arm.name: i for i, arm in enumerate(ARMS)}
    arms = dict(sorted(result["arms"].items(), key=lambda item: order.get(item[0], len(order))))
    building = out.with_name(f".{out.name}")
    building.write_text(json.dumps(result | {"arms": arms}, indent=1) + "\n")
    os.replace(building, out)


def points_over(row: dict[str, Any], reference: dict[str, Any], key: str) -> list[float]:
    """Difference to the reference on each seed that both have."""
    shared = sorted(row["seeds"].keys() & reference["seeds"].keys())
    pairs: Sequence[tuple[Any, Any]] = [(row["seeds"][s].get(key), reference["seeds"][s].get(key)) for s in shared]
    return [one - other for one, other in pairs if one is not None and other is not None]


if __name__ == "__main__":
    main()
