"""Teacher, base and aligned student on the same held-out questions: is there a gain, and is it more than noise?"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.evaluation.answer_log import answer_all, open_log
from mpa_edge.evaluation.predict import EvalSpec, question_set, questions_file, recipe_spec, with_silver
from mpa_edge.evaluation.review import decisions_about, reviewed_result
from mpa_edge.evaluation.score import accuracy_by_kind
from mpa_edge.images.folder import content_id
from mpa_edge.metrics import cautions, get_metric, unparsable
from mpa_edge.metrics.paired import bootstrap_ci95, flips, mcnemar_p, mean
from mpa_edge.progress import say
from mpa_edge.questions import QuestionSet, measure_of
from mpa_edge.runs.files import read_json, sha256_file, sha256_json, write_json
from mpa_edge.runs.log import logger
from mpa_edge.runs.manifest import StageClock, finish, is_done
from mpa_edge.runs.parquet import read_rows, write_rows
from mpa_edge.runs.paths import remove
from mpa_edge.stages.level.stage import trained_images
from mpa_edge.stages.run import Run, begin, device_used, memory_counts
from mpa_edge.stages.teacher import account, check_card, teacher_options, usage_counts
from mpa_edge.tasks import answer_prompt
from mpa_edge.types import Prediction
from mpa_edge.vlm import load

STAGE = "evaluate"
RESULT = "evaluate.json"
QUESTIONS = "questions"
MODELS = ("teacher", "base", "aligned")


def run_evaluate(run: Run, fresh: bool = False) -> None:
    """Write `evaluate/`: predictions of each model as parquet, and `evaluate.json`."""
    folder, inputs = run.stage_folder(STAGE), evaluate_inputs(run)
    if not fresh and is_done(folder, inputs):
        say("evaluate: already done, nothing changed")
        return
    begin(STAGE, folder, inputs, fresh)
    clock = StageClock(folder)
    spec = recipe_spec(asked_recipe(run), folder / QUESTIONS)
    by_teacher = spec.questions.truth == "teacher"
    for line in cautions(run.task.metric, [sample.answers for sample in spec.questions.samples]):
        say(f"evaluate: {line}")
    # the teacher would agree with itself
    made = {name: _predictions(run, name, spec, clock) for name in MODELS[by_teacher:]}
    result = summarise(made, spec.bootstrap, spec.seed) | {"metric": run.task.metric, "truth": spec.questions.truth}
    if (metric := get_metric(run.task.metric)).form:
        result["unparsable"] = {name: unparsable(metric, [row.text for row in rows]) for name, rows in made.items()}
    write_json(folder / RESULT, result)
    clock.tick()
    finish(
        folder,
        STAGE,
        inputs=inputs,
        config=run.recipe.evaluate,
        seed=run.recipe.evaluate.seed,
        counts={"questions": len(spec.questions.samples)} | usage_counts(run, STAGE) | memory_counts(),
        packages=("torch", "transformers", "openai"),
        used=device_used(run.recipe.device),
    )
    logger.info(
        "evaluate: %s %s, gain %s, interval %s",
        *(measure_of(spec.questions.truth), result["accuracy"], result["gain"], result["gain_ci95"]),
    )
    say(f"evaluate: {len(spec.questions.samples)} questions")


def result_of(run: Run) -> dict[str, Any] | None:
    """evaluate.json, with the true accuracies where a person has reviewed its questions; None before it is finished.

    The models' answers are read, and none is asked again. MpaError where the decisions are damaged.
    """
    folder = run.stage_folder(STAGE)
    result: dict[str, Any] | None = read_json(folder / RESULT) if run.finished(STAGE) else None
    if result is None or result.get("truth") != "teacher" or not run.finished("silver"):
        return result
    decisions = decisions_about(run.folder, questions(run))
    if decisions is None:
        return result
    made = {name: read_rows(folder / f"predictions-{name}.parquet", Prediction) for name in MODELS[1:]}
    return result | (reviewed_result(made, decisions, run.task.metric) or {})


def evaluate_inputs(run: Run) -> dict[str, str]:
    """Everything that the predictions depend on."""
    config = asked_recipe(run).evaluate
    if config.benchmark:  # wherever its files are
        samples = question_set(config, Path()).samples
        questions_sha256 = sha256_json(
            {"split": config.split, "asked": [sample.model_dump(exclude={"group"}) for sample in samples]}
        )
    else:
        questions_sha256 = sha256_file(questions_file(config.questions)) if config.questions else "generator"
    return {
        "merge": run.outputs_of("merge"),
        "teacher": run.teacher_fingerprint,
        "student": run.student_fingerprint,
        "questions": questions_sha256,
        "config": sha256_json(
            {
                "evaluate": config.model_dump(
                    exclude={"batch_size", "questions", "benchmark", "data", "split", "holdout", "votes"}
                ),
                "metric": run.task.metric,
                "answer": answer_prompt(run.task, "?"),
                "max_new_tokens": run.recipe.identify.max_new_tokens,
            }
        ),
    }


def asked_recipe(run: Run) -> Recipe:
    """The recipe of a run, with the questions of its teacher where it names none."""
    return with_silver(run.recipe, run.folder)


def questions(run: Run) -> QuestionSet:
    """The held-out questions of a run: from what its recipe names, its teacher's, or drawn by the generator."""
    return question_set(asked_recipe(run).evaluate, run.stage_folder(STAGE) / QUESTIONS)


def unseen(asked: QuestionSet, run: Run) -> QuestionSet:
    """The questions without those about images that the student of a run learned from, which are counted.

    MpaError where none is left.
    """
    if not run.finished("level"):
        return asked
    trained = trained_images(run)
    learned = {name for name in {s.image for s in asked.samples} if content_id(asked.folder / name) in trained}
    kept = [i for i, sample in enumerate(asked.samples) if sample.image not in learned]
    if not kept:
        raise MpaError(f"{asked.name}: {run.folder} was trained on every image: ask about others")
    n = len(asked.samples) - len(kept)
    return replace(
        asked,
        samples=tuple(asked.samples[i] for i in kept),
        numbers=tuple(asked.numbers[i] for i in kept),
        dropped=asked.dropped | ({"image that the student was trained on": n} if n else {}),
    )


def _predictions(run: Run, name: str, spec: EvalSpec, clock: StageClock) -> list[Prediction]:
    """All predictions of one model, from its finished file, else from its answer log and the model itself."""
    folder, recipe = run.stage_folder(STAGE), run.recipe
    path, log_path = folder / f"predictions-{name}.parquet", folder / f".answers-{name}.jsonl"
    if path.is_file():
        return read_rows(path, Prediction)
    with open_log(log_path, spec) as log:
        if log.missing:
            references = {"teacher": recipe.teacher, "base": recipe.student, "aligned": str(run.stage_folder("merge"))}
            vlm = load(
                references[name],
                name=name,
                device=recipe.device,
                threads=recipe.threads,
                batch_size=recipe.evaluate.batch_size,
                **(teacher_options(run) if name == "teacher" else {}),
            )
            with closing(vlm), account(run, STAGE, vlm) as booked:
                check_card(run, vlm, write=False)

                def after_chunk() -> None:
                    clock.tick()
                    booked()

                answer_all(vlm, log, title=f"evaluate {name}", after_chunk=after_chunk)
        made = log.predictions(name)
    write_rows(path, made, Prediction)
    remove(log_path)
    return made


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
            name: bootstrap_ci95([row.score for row in rows], images, resamples=resamples, seed=seed, low=0.0)
            for name, rows in made.items()
        },
        "gain": mean(difference),
        "gain_ci95": bootstrap_ci95(difference, images, resamples=resamples, seed=seed),
        "p_mcnemar": mcnemar_p(changed.gained, changed.lost),
        "flips": {"gained": changed.gained, "lost": changed.lost},
        "kinds": accuracy_by_kind(made),
    }
