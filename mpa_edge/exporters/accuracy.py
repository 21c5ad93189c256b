"""Base, aligned and what was exported on the same held-out questions: how much of the gain went along?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpa_edge.artifact import read_artifact
from mpa_edge.errors import MpaError
from mpa_edge.evaluation import mean, predict, question_set
from mpa_edge.exporters.apart import run_apart
from mpa_edge.exporters.card import write_card
from mpa_edge.exporters.manifest import AccuracyFigures, read_export_manifest, write_export_manifest
from mpa_edge.exporters.source import Source
from mpa_edge.metrics.gain import judge
from mpa_edge.metrics.paired import bootstrap_ci95
from mpa_edge.progress import progress, say
from mpa_edge.recipe import Recipe
from mpa_edge.rows import part_path, read_parts, read_rows, write_rows
from mpa_edge.runs import FOLDERS, make_folder, read_manifest, run_lock, sha256_json
from mpa_edge.tasks import get_task
from mpa_edge.types import Prediction, Sample
from mpa_edge.vlm import fingerprint, load

CHUNK = 100
SCRATCH = ".accuracy"


@dataclass(frozen=True)
class Exam:
    """The questions that all models are asked."""

    recipe: Recipe
    """Task, prompts and limits."""
    images: Path
    """Folder of the pictures."""
    samples: Sequence[Sample]
    """Questions with known answers."""
    scratch: Path
    """Where answers are kept: a kill costs one part."""
    threads: int | None
    """CPU threads; None: one for each core."""

    @property
    def sha256(self) -> str:
        """Of the questions and of how they are asked."""
        asked = [(s.id, s.image, s.question, s.answers) for s in self.samples]
        return sha256_json({"asked": asked, "task": self.recipe.task, "limits": self.recipe.identify.max_new_tokens})


def recipe_of(source: Source) -> Recipe:
    """How the run asks. MpaError where the source is no run, and so has no base to compare with."""
    if source.recipe is None:
        raise MpaError(f"{source.name} is no run, so there is no base to compare with: name the run folder")
    return source.recipe


def open_exam(source: Source, n: int, threads: int | None = None) -> Exam:
    """N held-out questions of a run. MpaError where the source is no run, or there are fewer."""
    recipe, scratch = recipe_of(source), make_folder(source.exports / SCRATCH)
    config = recipe.evaluate.model_copy(update={"n": n})
    images, samples = question_set(config, scratch / "questions")
    if len(samples) < n:
        raise MpaError(f"only {len(samples)} questions in {config.questions}: use --accuracy {len(samples)}")
    return Exam(recipe, images, samples, scratch, threads)


def measure(source: Source, folders: Sequence[Path], n: int, threads: int | None = None) -> None:
    """Ask base, aligned and every export n questions; the figures go into each manifest and card."""
    with run_lock(source.exports):
        exam = open_exam(source, n, threads)
        base, aligned = (scores_of_run(source, exam, name) for name in ("base", "aligned"))
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
        base=before, aligned=after, artifact=now, n=len(made), ci95=interval,
        retained_gain=retained_gain(before, after, now), verdict=judgement.verdict, reasons=judgement.reasons,
        questions_sha256=exam.sha256,
    )  # fmt: skip


def retained_gain(base: float, aligned: float, artifact: float) -> float | None:
    """Share of the gain that is left; None where there was none.

    >>> retained_gain(0.5, 0.7, 0.65)
    0.75
    >>> retained_gain(0.5, 0.5, 0.6) is None
    True
    """
    return round((artifact - base) / (aligned - base), 6) if aligned > base else None


def scores_of_run(source: Source, exam: Exam, name: str) -> list[Prediction]:
    """Answers of base or aligned in full precision: those of the run's own evaluation where it asked the same."""
    known = _evaluated(source, name)
    if all(s.id in known and known[s.id].question == s.question for s in exam.samples):
        return [known[sample.id] for sample in exam.samples]
    return ask(exam, exam.recipe.student if name == "base" else str(source.checkpoint), name)


def _evaluated(source: Source, name: str) -> dict[str, Prediction]:
    folder = (source.run or Path()) / FOLDERS["evaluate"]
    path = folder / f"predictions-{name}.parquet"
    manifest, merged = read_manifest(folder), read_manifest(source.checkpoint)
    if manifest is None or merged is None or manifest.inputs["merge"] != sha256_json(merged.outputs):
        return {}  # never evaluated, or before it was aligned again
    if not path.is_file():
        return {}
    return {row.sample_id: row for row in read_rows(path, Prediction)}


def ask(exam: Exam, reference: str, name: str) -> list[Prediction]:
    """All answers of one model, in parts and in a process of its own."""
    key = sha256_json({"model": fingerprint(reference), "exam": exam.sha256})[:16]
    parts = make_folder(exam.scratch / f"{name}-{key}")
    starts = range(0, len(exam.samples), CHUNK)
    if not all(part_path(parts, i).is_file() for i in range(len(starts))):
        run_apart(_ask_parts, exam, reference, name, parts, threads=exam.threads)
    return read_parts(parts, Prediction)


def _ask_parts(exam: Exam, reference: str, name: str, parts: Path) -> None:
    recipe, n = exam.recipe, len(exam.samples)
    vlm = load(reference, name=name, threads=exam.threads, batch_size=recipe.evaluate.batch_size)
    with progress(f"accuracy {name}", n) as advance:
        for i, start in enumerate(range(0, n, CHUNK)):
            chunk = exam.samples[start : start + CHUNK]
            if not part_path(parts, i).is_file():
                task, limit = get_task(recipe.task), recipe.identify.max_new_tokens
                made = predict(vlm, task, exam.images, chunk, limit, recipe.images.max_pixels)
                write_rows(part_path(parts, i), made, Prediction)
            advance(len(chunk))
    vlm.close()
