"""A benchmark on a teacher's questions, with what a person has reviewed since: the same answers, scored anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpa_edge.bench.results.records import AnswerRow, BenchReport
from mpa_edge.bench.results.validity import overall
from mpa_edge.config.library import load_recipe
from mpa_edge.evaluation.review import decisions_about, review_figures, reviewed_scores
from mpa_edge.metrics.gain import accuracy_result, judge
from mpa_edge.questions.own import read_questions
from mpa_edge.runs.manifest import FOLDERS, RECIPE_FILE, SILVER_QUESTIONS
from mpa_edge.tasks import get_task
from mpa_edge.types import Prediction

MODELS = ("base", "aligned", "artifact")


def with_review(report: BenchReport, rows: Sequence[AnswerRow], run: Path) -> BenchReport:
    """The report with true accuracies and the verdict on them, where the questions of a run are reviewed.

    MpaError where the decisions are damaged.
    """
    silver = run / FOLDERS["silver"] / SILVER_QUESTIONS
    if report.truth != "teacher" or not rows or not silver.is_file():
        return report
    decisions = decisions_about(run, read_questions(silver))
    recipe = load_recipe(str(run / RECIPE_FILE))
    metric = get_task(recipe.task).metric
    models = [[_prediction(row, number) for row in rows] for number in range(len(MODELS))]
    figures = decisions and review_figures(decisions, models, metric)
    if decisions is None or figures is None:
        return report
    reviewed = reviewed_scores(decisions, models, metric)
    base, aligned, artifact = ([row.score for row in made] for made in models)
    images = [row.cluster for row in rows]
    before = judge(base, aligned, artifact, images)
    found = judge(base, aligned, artifact, images, reviewed=reviewed)
    rest = report.reasons[len(before.reasons) :] if report.reasons[: len(before.reasons)] == before.reasons else ()
    return report.model_copy(
        update={
            "truth": "reviewed",
            "review": figures,
            "accuracy": accuracy_result(base, aligned, artifact, images, reviewed=reviewed, seed=recipe.seed),
            "accuracy_verdict": found.verdict,
            "n_to_settle": found.n_to_settle,
            "verdict": overall(found.verdict, report.timings != "valid"),
            "reasons": (*found.reasons, *rest),
        }
    )


def _prediction(row: AnswerRow, number: int) -> Prediction:
    """The answer of one of MODELS, by its number."""
    return Prediction(
        sample_id=row.id,
        image_id=row.cluster,
        kind=row.kind,
        question=row.question,
        answers=row.answers,
        model=MODELS[number],
        text=(row.base, row.aligned, row.artifact)[number],
        score=row.scores[number],
    )
