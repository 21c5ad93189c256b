"""What `mpa-edge align` gains on the built-in models, and what it costs.

    python benchmarks/align.py --seeds 0,1,2 --keep runs/benchmark --out docs/results.json
    python benchmarks/report.py

What is measured, and why it can be trusted:
- gain: fresh images, sampling and training for each seed; 1,000 questions that no training saw, the same ones for
  teacher, base and aligned; interval by bootstrap over images, exact McNemar test
- forgetting: base and aligned on 1,000 questions in the plain style, which the base student masters
- wall seconds: of a whole process, start of Python and loading of torch included; peak memory: the kernel's VmHWM
- overhead: wall seconds outside the models' answers, and the training and evaluation steps. All else counts:
  parquet, hashing, images, progress, loading of libraries and models
Not timed: the installation. The machine should do nothing else meanwhile.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from common import machine, mean, write

EVALUATION_SEED = 1_000_003


def align(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """One run in a process of its own, through the counting below; its report with wall seconds and overhead."""
    started = time.monotonic()
    changes = [part for one in overrides for part in ("--set", one)]
    program = [sys.executable, __file__, "--inner", str(folder), *changes]
    done = subprocess.run(program, stdout=subprocess.PIPE, check=True)
    wall_s = time.monotonic() - started
    result: dict[str, Any] = json.loads(done.stdout)
    return result | {"wall_s": round(wall_s, 1), "overhead": 1 - result["models_s"] / wall_s}


def inner(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """What the align command does, with the seconds inside the models added up."""
    from mpa_edge.stages.pipeline import report, run_stages
    from mpa_edge.stages.run import open_run

    run, spent = open_run("minicharts", out=str(folder), overrides=overrides), {"inside_s": 0.0, "depth": 0}
    with counting(spent):
        run_stages(run)
    return report(run).model_dump(mode="json") | {"models_s": spent["inside_s"]}


@contextmanager
def counting(spent: dict[str, float]) -> Iterator[None]:
    """Add up the seconds inside the models' answers, and training and evaluation steps."""
    import torch
    from transformers import GenerationMixin
    from trl import SFTTrainer

    from mpa_edge.vlm.transformers import model, prefix_cache

    def timed(owner: Any, name: str) -> tuple[Any, str, Any]:
        original = getattr(owner, name)

        @functools.wraps(original)  # transformers reads the signature
        def outer(*args: Any, **kwargs: Any) -> Any:
            spent["depth"] += 1
            started = time.monotonic()
            try:
                return original(*args, **kwargs)
            finally:
                spent["depth"] -= 1
                if not spent["depth"]:  # what is called inside another timed function counts once
                    spent["inside_s"] += time.monotonic() - started

        setattr(owner, name, outer)
        return owner, name, original

    places = (
        (GenerationMixin, "generate"),
        (prefix_cache, "see"),
        (model, "decode"),
        (SFTTrainer, "training_step"),
        (SFTTrainer, "prediction_step"),
        (torch.optim.AdamW, "step"),
    )
    saved = [timed(owner, name) for owner, name in places]
    try:
        yield
    finally:
        for owner, name, original in saved:
            setattr(owner, name, original)


def plain_style(references: dict[str, str], n: int) -> dict[str, Any]:
    """Models on n questions in the plain style: accuracy in all and by kind."""
    from mpa_edge.config.recipe import PILLOW_PIXEL_CAP
    from mpa_edge.evaluation.answer_log import AnswerLog, answer_all
    from mpa_edge.evaluation.predict import EvalSpec
    from mpa_edge.evaluation.score import accuracy_by_kind
    from mpa_edge.nursery.render import ANSWERS, render
    from mpa_edge.questions.own import read_questions
    from mpa_edge.tasks import get_task
    from mpa_edge.vlm import load

    with tempfile.TemporaryDirectory() as temporary:
        folder = render(Path(temporary), n, EVALUATION_SEED + 1, "plain", answers_per_image=1)
        spec = EvalSpec(read_questions(folder / ANSWERS), get_task("minicharts"), 16, PILLOW_PIXEL_CAP)
        made = {}
        for name, reference in references.items():
            vlm = load(reference, name=name)
            log = AnswerLog(spec)
            answer_all(vlm, log)
            made[name] = log.predictions(name)
            vlm.close()
    scores = {name: sum(row.score for row in rows) / n for name, rows in made.items()}
    return {"n": n, **scores, "kinds": accuracy_by_kind(made)}


def benchmark(folder: Path, seed: int, extra: Sequence[str]) -> dict[str, Any]:
    """One seed: the run with fresh images and a fresh training, the plain style, the question kinds."""
    fresh = (f"seed={seed}", f"images.render.seed={1000 + seed}", f"evaluate.seed={EVALUATION_SEED}")
    run = align(folder, (*fresh, *extra))
    details = json.loads((folder / "evaluate" / "evaluate.json").read_text())
    plain = plain_style({"base": "nursery:student", "aligned": str(folder / "merged")}, 1000)
    click.echo(f"seed {seed}: gain {run['gain']:+.3f}, p {run['p_mcnemar']:.1e}, {run['wall_s']} s", err=True)
    return run | {"run": folder.name, "seed": seed, "kinds": details["kinds"], "plain": plain}


@click.command()
@click.option("--seeds", default="0,1,2", show_default=True, help="Comma-separated.")
@click.option("--keep", type=click.Path(path_type=Path), help="Leave the run folders here.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON document here, else to stdout.")
@click.option("--set", "extra", multiple=True, help="Further overrides of the recipe.")
@click.option("--inner", "inner_folder", type=click.Path(path_type=Path), hidden=True)
def main(seeds: str, keep: Path | None, out: Path | None, extra: tuple[str, ...], inner_folder: Path | None) -> None:
    """Run the benchmark."""
    if inner_folder:
        click.echo(json.dumps(inner(inner_folder, extra)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        runs = [benchmark(folder / f"seed-{seed}", seed, extra) for seed in map(int, seeds.split(","))]
    result = {
        "command": "python benchmarks/align.py " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "mean_gain": mean([run["gain"] for run in runs]),
        "runs": runs,
    }
    if out:
        write(out, result)
    else:
        click.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
