"""Base, aligned and what was exported on the same held-out questions: how much of the gain went along?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpa_edge.artifact import read_artifact
from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.evaluation.compare import Exam, answers_of_run, ask, open_exam
from mpa_edge.evaluation.predict import mean
from mpa_edge.exporters.publish.card import write_card
from mpa_edge.exporters.publish.manifest import AccuracyFigures, read_export_manifest, write_export_manifest
from mpa_edge.exporters.source import Source
from mpa_edge.metrics.gain import judge
from mpa_edge.metrics.paired import bootstrap_ci95
from mpa_edge.progress import say
from mpa_edge.runs.lock import run_lock
from mpa_edge.types import Prediction

SCRATCH = ".accuracy"


def recipe_of(source: Source) -> Recipe:
    """How the run asks. MpaError where the source is no run, and so has no base to compare with."""
    if source.recipe is None:
        raise MpaError(f"{source.name} is no run, so there is no base to compare with: name the run folder")
    return source.recipe


def exam_of(source: Source, n: int, threads: int | None = None) -> Exam:
    """N held-out questions of a run. MpaError where the source is no run, or there are fewer."""
    return open_exam(recipe_of(source), n, source.exports / SCRATCH, threads)


def measure(source: Source, folders: Sequence[Path], n: int, threads: int | None = None) -> None:
    """Ask base, aligned and every export n questions; the figures go into each manifest and card."""
    with run_lock(source.exports):
        exam = exam_of(source, n, threads)
        base, aligned = (answers_of_run(exam, source.run, source.checkpoint, name) for name in ("base", "aligned"))
        for folder in folders:
            manifest = read_export_manifest(folder)
            if manifest is None:
                raise MpaError(f"{folder} is no finished export: run mpa-edge export again")
            if manifest.accuracy and manifest.accuracy.questions_sha256 == exam.sha256:
                say(f"{folder.name}: accuracy measured before on these {n} questions")
                continue
            made = ask(exam, str(folder), folder.name)
            manifest = manifest.model_copy(update={"accuracy": figures(exam, base, aligned, made)})
            write_card(source, read_artifact(folder), manifest, folder)
            write_export_manifest(folder, manifest)


def figures(
    exam: Exam, base: Sequence[Prediction], aligned: Sequence[Prediction], made: Sequence[Prediction]
) -> AccuracyFigures:
    """The three accuracies and the share of the gain that is left."""
    was, could, does = ([row.score for row in rows] for rows in (base, aligned, made))
    before, after, now = mean(was), mean(could), mean(does)
    pictures = [row.image_id for row in made]
    config = exam.recipe.evaluate
    interval = bootstrap_ci95(does, pictures, resamples=config.bootstrap, seed=exam.recipe.seed)
    judgement = judge(was, could, does, pictures)
    return AccuracyFigures(
        base=before,
        aligned=after,
        artifact=now,
        n=len(made),
        ci95=interval,
        retained_gain=retained_gain(before, after, now),
        verdict=judgement.verdict,
        reasons=judgement.reasons,
        questions_sha256=exam.sha256,
    )


def retained_gain(base: float, aligned: float, artifact: float) -> float | None:
    """Share of the gain that is left; None where there was none.

    >>> retained_gain(0.5, 0.7, 0.65)
    0.75
    >>> retained_gain(0.5, 0.5, 0.6) is None
    True
    """
    return round((artifact - base) / (aligned - base), 6) if aligned > base else None
