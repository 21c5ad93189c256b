"""The questions on which base, aligned and what was exported are compared, and who answered them before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.evaluation.predict import predict, question_set
from mpa_edge.progress import progress
from mpa_edge.runs.files import make_folder, sha256_json
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.runs.manifest import FOLDERS, read_manifest
from mpa_edge.runs.parquet import part_path, read_parts, read_rows, write_rows
from mpa_edge.tasks import get_task
from mpa_edge.types import Prediction, Sample
from mpa_edge.vlm import fingerprint, load

CHUNK = 100


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


def open_exam(recipe: Recipe, n: int, scratch: Path, threads: int | None = None, option: str = "--accuracy") -> Exam:
    """N held-out questions of a run. MpaError where there are fewer, with the option that would ask as many."""
    config = recipe.evaluate.model_copy(update={"n": n})
    images, samples = question_set(config, make_folder(scratch) / "questions")
    if len(samples) < n:
        source = config.questions or config.data
        raise MpaError(f"only {len(samples)} questions in {source}: use {option} {len(samples)}")
    return Exam(recipe, images, samples, scratch, threads)


def answers_of_run(exam: Exam, run: Path | None, checkpoint: Path, name: str) -> list[Prediction]:
    """Answers of base or aligned in full precision: those of the run's own evaluation where it asked the same."""
    known = _evaluated(run, checkpoint, name)
    if all(s.id in known and known[s.id].question == s.question for s in exam.samples):
        return [known[sample.id] for sample in exam.samples]
    return ask(exam, exam.recipe.student if name == "base" else str(checkpoint), name)


def _evaluated(run: Path | None, checkpoint: Path, name: str) -> dict[str, Prediction]:
    folder = (run or Path()) / FOLDERS["evaluate"]
    path = folder / f"predictions-{name}.parquet"
    manifest, merged = read_manifest(folder), read_manifest(checkpoint)
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
        run_isolated(_ask_parts, exam, reference, name, parts, threads=exam.threads)
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
