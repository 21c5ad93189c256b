"""Base, aligned and exports on the same held-out questions: how much of the gain is left after export?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpa_edge.artifact import read_artifact
from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.evaluation.compare import answers_of, answers_of_run, open_comparison
from mpa_edge.evaluation.review import decisions_about, review_figures, reviewed_scores
from mpa_edge.exporters.publish.card import write_card
from mpa_edge.exporters.publish.manifest import AccuracyFigures, finished
from mpa_edge.exporters.source import Source
from mpa_edge.metrics.gain import accuracy_result, bounds, judge
from mpa_edge.progress import say
from mpa_edge.runs.files import sha256_json, write_json
from mpa_edge.runs.lock import run_lock
from mpa_edge.runs.manifest import MANIFEST
from mpa_edge.runs.paths import inside, require_plain

SCRATCH = ".accuracy"


def recipe_of(source: Source) -> Recipe:
    """The recipe of a run. MpaError where the source is no run, and so has no base to compare with."""
    if source.recipe is None:
        raise MpaError(f"{source.name} is no run, so there is no base to compare with: name the run folder")
    return source.recipe


def measure(source: Source, folders: Sequence[Path], n: int | None, threads: int | None = None) -> None:
    """Ask base, aligned and each export the same `n` questions, None: those of the recipe's evaluation.

    The figures go into each export's manifest and card.

    Raises MpaError where the source is no run, has fewer questions, or an export is not finished.
    """
    with run_lock(source.exports):
        scratch = inside(source.exports, SCRATCH)
        require_plain(scratch)
        comparison = open_comparison(recipe_of(source), n, scratch, threads)
        spec = comparison.spec
        decisions, metric = decisions_about(source.run, spec.questions), spec.task.metric
        measured = sha256_json([spec.sha256, decisions.sha256]) if decisions else spec.sha256
        host = [answers_of_run(comparison, source.run, source.checkpoint, name) for name in ("base", "aligned")]
        base, aligned = ([row.score for row in rows] for rows in host)
        for folder in folders:
            manifest = finished(folder)
            if manifest.accuracy and manifest.accuracy.questions_sha256 == measured:
                say(f"{folder.name}: accuracy already measured on these {len(comparison.samples)} questions")
                continue
            made = answers_of(comparison, str(folder), folder.name)
            exported, images = [row.score for row in made], [row.image_id for row in made]
            review = review_figures(decisions, [*host, made], metric) if decisions else None
            reviewed = reviewed_scores(decisions, [*host, made], metric) if decisions and review else None
            found = accuracy_result(
                base, aligned, exported, images, reviewed=reviewed, resamples=spec.bootstrap, seed=spec.seed
            )
            judgement = judge(base, aligned, exported, images, reviewed=reviewed)
            figures = AccuracyFigures(
                base=found.base.value,
                aligned=found.aligned.value,
                artifact=found.artifact.value,
                n=len(made),
                ci95=found.artifact.ci95,
                loss_upper=-bounds(np.asarray(exported) - np.asarray(aligned), images)[0],
                retained_gain=found.retained_gain,
                verdict=judgement.verdict,
                reasons=judgement.reasons,
                truth="reviewed" if review else spec.questions.truth,
                review=review,
                questions_sha256=measured,
            )
            manifest = manifest.model_copy(update={"accuracy": figures})
            write_card(source, read_artifact(folder), manifest, folder)
            write_json(folder / MANIFEST, manifest)
