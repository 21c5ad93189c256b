"""The held-out questions on which base, aligned and an export are compared, and each model's answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.evaluation.answer_log import answer_all, open_log
from mpa_edge.evaluation.predict import EvalSpec, recipe_spec
from mpa_edge.progress import say
from mpa_edge.runs.files import make_folder, sha256_json
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.runs.manifest import FOLDERS, damaged, read_manifest
from mpa_edge.runs.parquet import read_rows
from mpa_edge.types import Prediction, Sample
from mpa_edge.vlm import fingerprint, load


@dataclass(frozen=True)
class Comparison:
    """The questions that all models are asked."""

    recipe: Recipe
    """The run's recipe."""
    spec: EvalSpec
    """Questions, prompts and limits."""
    scratch: Path
    """Folder of the answer logs."""
    threads: int | None
    """CPU threads; None: one for each core."""

    @property
    def samples(self) -> Sequence[Sample]:
        """The questions."""
        return self.spec.questions.samples

    @property
    def images(self) -> Path:
        """Folder of their images."""
        return self.spec.questions.folder


def open_comparison(
    recipe: Recipe, n: int | None, scratch: Path, threads: int | None = None, option: str = "--accuracy"
) -> Comparison:
    """`n` held-out questions of a run, None: those of its evaluation.

    MpaError where there are fewer than `n`; it names the `option` that asks for as many. Of the teacher's questions,
    nobody knows beforehand how many there will be: all are taken.
    """
    config = recipe.evaluate if n is None else recipe.evaluate.model_copy(update={"n": n})
    spec = recipe_spec(recipe.model_copy(update={"evaluate": config}), make_folder(scratch) / "questions")
    n_found = len(spec.questions.samples)
    if n is not None and n_found < n and spec.questions.truth == "teacher":
        say(f"the teacher has written {n_found} held-out questions, fewer than {option} {n}: all of them are asked")
    elif n is not None and n_found < n:
        raise MpaError(f"only {n_found} questions in {config.questions or config.data}: use {option} {n_found}")
    return Comparison(recipe, spec, scratch, threads)


def answers_of_run(comparison: Comparison, run: Path | None, checkpoint: Path, name: str) -> list[Prediction]:
    """Answers of base or aligned in full precision: those of the run's own evaluation where it asked the same."""
    if run is not None:
        folder = run / FOLDERS["evaluate"]
        path = folder / f"predictions-{name}.parquet"
        evaluated, merged = read_manifest(folder), read_manifest(checkpoint)
        if evaluated and merged and evaluated.inputs.get("merge") == sha256_json(merged.outputs) and path.is_file():
            # not where the files of the model have changed since
            if name == "base":
                same = evaluated.inputs.get("student") == fingerprint(comparison.recipe.student)
            else:
                same = not damaged(checkpoint, merged)
            known = {row.sample_id: row for row in read_rows(path, Prediction)}
            if same and all(s.id in known and known[s.id].question == s.question for s in comparison.samples):
                return [known[sample.id] for sample in comparison.samples]
    return answers_of(comparison, comparison.recipe.student if name == "base" else str(checkpoint), name)


def answers_of(comparison: Comparison, reference: str, name: str) -> list[Prediction]:
    """All answers of one model, asked in a process of its own where they are not logged yet."""
    key = sha256_json({"model": fingerprint(reference), "questions": comparison.spec.sha256})[:16]
    path = comparison.scratch / f"{name}-{key}.jsonl"
    with open_log(path, comparison.spec) as log:
        if not log.missing:
            return log.predictions(name)
    run_isolated(_answer, comparison, reference, name, path, threads=comparison.threads)
    with open_log(path, comparison.spec) as log:
        return log.predictions(name)


def _answer(comparison: Comparison, reference: str, name: str, path: Path) -> None:
    batch_size = comparison.recipe.evaluate.batch_size
    with (
        open_log(path, comparison.spec) as log,
        closing(load(reference, name=name, threads=comparison.threads, batch_size=batch_size)) as vlm,
    ):
        answer_all(vlm, log, title=f"accuracy {name}")
