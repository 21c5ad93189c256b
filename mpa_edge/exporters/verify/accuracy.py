"""Base, aligned and exports on the same held-out questions: how much of the gain is left after export?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpa_edge.artifact import read_artifact
from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.evaluation.compare import answers_of, answers_of_run, open_comparison
from mpa_edge.exporters.publish.card import write_card
from mpa_edge.exporters.publish.manifest import AccuracyFigures, finished
from mpa_edge.exporters.source import Source
from mpa_edge.metrics.gain import bounds, judge, retained_gain
from mpa_edge.metrics.paired import bootstrap_ci95, mean
from mpa_edge.progress import say
from mpa_edge.runs.files import write_json
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
        base, aligned = (
            [row.score for row in answers_of_run(comparison, source.run, source.checkpoint, name)]
            for name in ("base", "aligned")
        )
        for folder in folders:
            manifest = finished(folder)
            if manifest.accuracy and manifest.accuracy.questions_sha256 == spec.sha256:
                say(f"{folder.name}: accuracy already measured on these {len(comparison.samples)} questions")
                continue
            made = answers_of(comparison, str(folder), folder.name)
            exported, images = [row.score for row in made], [row.image_id for row in made]
            judgement = judge(base, aligned, exported, images)
            figures = AccuracyFigures(
                base=mean(base),
                aligned=mean(aligned),
                artifact=mean(exported),
                n=len(made),
                ci95=bootstrap_ci95(exported, images, resamples=spec.bootstrap, seed=spec.seed, low=0.0),
                loss_upper=-bounds(np.asarray(exported) - np.asarray(aligned), images)[0],
                retained_gain=retained_gain(mean(base), mean(aligned), mean(exported)),
                verdict=judgement.verdict,
                reasons=judgement.reasons,
                questions_sha256=spec.sha256,
            )
            manifest = manifest.model_copy(update={"accuracy": figures})
            write_card(source, read_artifact(folder), manifest, folder)
            write_json(folder / MANIFEST, manifest)
