"""Teacher, base and aligned student on the same held-out questions: is there a gain, and is it more than noise?"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpa_edge.config.recipe import EvaluateConfig
from mpa_edge.evaluation.predict import by_kind, mean, predict, question_set, questions_file
from mpa_edge.metrics.paired import bootstrap_ci95, flips, mcnemar_p
from mpa_edge.progress import progress, say
from mpa_edge.runs.files import make_folder, sha256_file, sha256_json, write_json
from mpa_edge.runs.manifest import StageClock, finish, is_done
from mpa_edge.runs.parquet import part_path, read_parts, read_rows, write_rows
from mpa_edge.stages.run import Run, begin, device_used, memory_counts
from mpa_edge.stages.teacher import account, check_card, teacher_options, usage_counts
from mpa_edge.tasks import answer_prompt
from mpa_edge.types import Prediction, Sample
from mpa_edge.vlm import load

STAGE = "evaluate"
RESULT = "evaluate.json"
QUESTIONS = "questions"
CHUNK = 200
MODELS = ("teacher", "base", "aligned")


def run_evaluate(run: Run, fresh: bool = False) -> None:
    """Write `evaluate/`: predictions of each model as parquet, and `evaluate.json`."""
    folder, inputs = run.stage_folder(STAGE), evaluate_inputs(run)
    if not fresh and is_done(folder, inputs):
        say("evaluate: done before, nothing changed")
        return
    begin(STAGE, folder, inputs, fresh)
    clock = StageClock(folder)
    images, samples = questions(run)
    made = {name: _predictions(run, name, images, samples, clock) for name in MODELS}
    result = summarise(made, run.recipe.evaluate.bootstrap, run.recipe.seed)
    write_json(folder / RESULT, result | {"metric": run.task.metric})
    clock.tick()
    finish(
        folder,
        STAGE,
        inputs=inputs,
        config=run.recipe.evaluate,
        seed=run.recipe.evaluate.seed,
        counts={"questions": len(samples)} | usage_counts(run, STAGE) | memory_counts(),
        packages=("torch", "transformers", "openai"),
        used=device_used(run.recipe.device),
    )
    say(f"evaluate: {len(samples)} questions")


def evaluate_inputs(run: Run) -> dict[str, str]:
    """Everything that the predictions depend on."""
    config = run.recipe.evaluate
    return {
        "merge": run.outputs_of("merge"),
        "teacher": run.teacher_fingerprint,
        "student": run.student_fingerprint,
        "questions": _questions_mark(config),
        "config": sha256_json(
            {
                "evaluate": config.model_dump(exclude={"batch_size", "questions", "benchmark", "data", "split"}),
                "metric": run.task.metric,
                "answer": answer_prompt(run.task, "?"),
                "max_new_tokens": run.recipe.identify.max_new_tokens,
            }
        ),
    }


def _questions_mark(config: EvaluateConfig) -> str:
    """What makes the questions these questions; moving a benchmark's folder changes nothing."""
    if config.benchmark:
        _, samples = question_set(config, Path())
        return sha256_json({"split": config.split, "asked": [sample.model_dump() for sample in samples]})
    return sha256_file(questions_file(config.questions)) if config.questions else "generator"


def questions(run: Run) -> tuple[Path, list[Sample]]:
    """(folder of the images, held-out samples): from the file that the recipe names, or drawn by the generator."""
    return question_set(run.recipe.evaluate, run.stage_folder(STAGE) / QUESTIONS)


def _predictions(run: Run, name: str, images: Path, samples: Sequence[Sample], clock: StageClock) -> list[Prediction]:
    """All predictions of one model: read, or made in parts so that a kill costs one part, then joined in one file."""
    path = run.stage_folder(STAGE) / f"predictions-{name}.parquet"
    if not path.is_file():
        parts = make_folder(run.stage_folder(STAGE) / f".parts-{name}")
        starts = range(0, len(samples), CHUNK)
        todo = [i for i in range(len(starts)) if not part_path(parts, i).is_file()]
        if todo:
            _ask(
                run, name, images, [(part_path(parts, i), samples[starts[i] : starts[i] + CHUNK]) for i in todo], clock
            )
        write_rows(path, read_parts(parts, Prediction), Prediction)
        shutil.rmtree(parts)
    return read_rows(path, Prediction)


def _ask(run: Run, name: str, images: Path, parts: Sequence[tuple[Path, Sequence[Sample]]], clock: StageClock) -> None:
    """Ask one model the questions of each part and write them."""
    recipe = run.recipe
    reference = {"teacher": recipe.teacher, "base": recipe.student, "aligned": str(run.stage_folder("merge"))}[name]
    vlm = load(
        reference,
        name=name,
        device=recipe.device,
        threads=recipe.threads,
        batch_size=recipe.evaluate.batch_size,
        **(teacher_options(run) if name == "teacher" else {}),
    )
    check_card(run, vlm, write=False)
    with (
        account(run, STAGE, vlm) as save,
        progress(f"evaluate {name}", sum(len(chunk) for _, chunk in parts)) as advance,
    ):
        for path, chunk in parts:
            made = predict(vlm, run.task, images, chunk, recipe.identify.max_new_tokens, recipe.images.max_pixels)
            write_rows(path, made, Prediction)
            clock.tick()
            save()
            advance(len(chunk))
    vlm.close()


def summarise(made: dict[str, list[Prediction]], resamples: int, seed: int) -> dict[str, Any]:
    """Accuracies with intervals, gain with interval and exact McNemar p, flips, and accuracy for each question kind."""
    base, aligned = made["base"], made["aligned"]
    images = [row.image_id for row in base]
    before, after = [row.score for row in base], [row.score for row in aligned]
    changed = flips(before, after)
    difference = [a - b for a, b in zip(after, before, strict=True)]
    return {
        "n": len(base),
        "accuracy": {name: mean([row.score for row in rows]) for name, rows in made.items()},
        "ci95": {
            name: bootstrap_ci95([row.score for row in rows], images, resamples=resamples, seed=seed)
            for name, rows in made.items()
        },
        "gain": mean(difference),
        "gain_ci95": bootstrap_ci95(difference, images, resamples=resamples, seed=seed),
        "p_mcnemar": mcnemar_p(changed.gained, changed.lost),
        "flips": {"gained": changed.gained, "lost": changed.lost},
        "kinds": by_kind(made),
    }
