"""The five stages in order over one run folder, the plan that `--dry-run` prints, and the report at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.rows import count_reasons, read_dropped
from mpa_edge.runs import peak_rss_bytes, read_json, read_manifest, run_lock
from mpa_edge.stages.annotate import run_annotate
from mpa_edge.stages.identify import run_identify
from mpa_edge.stages.level import run_level
from mpa_edge.stages.run import FOLDERS, Run, remember
from mpa_edge.types import AlignAccuracy, AlignReport


def _merge(run: Run, fresh: bool) -> None:
    from mpa_edge.stages.merge import run_merge

    run_merge(run, fresh)


def _evaluate(run: Run, fresh: bool) -> None:
    from mpa_edge.stages.evaluate import run_evaluate

    run_evaluate(run, fresh)


STAGES: dict[str, Callable[[Run, bool], None]] = {
    "annotate": run_annotate,
    "identify": run_identify,
    "level": run_level,
    "merge": _merge,
    "evaluate": _evaluate,
}


def run_stages(run: Run, names: tuple[str, ...] = tuple(STAGES), fresh: bool = False) -> None:
    """Run the named stages in order; what is done and unchanged is skipped."""
    with run_lock(run.folder):
        remember(run)
        for name in names:
            if name == "evaluate" and not can_evaluate(run):
                continue
            STAGES[name](run, fresh)


def can_evaluate(run: Run) -> bool:
    """Whether there are questions with known answers: a file, or the generator's for the built-in task."""
    return run.recipe.evaluate.questions is not None or run.recipe.task == "minicharts"


def report(run: Run) -> AlignReport:
    """What a run has come to so far; null where a stage has not run."""
    manifests = {name: read_manifest(run.stage_folder(name)) for name in FOLDERS}
    counts = {name: manifest.counts if manifest else {} for name, manifest in manifests.items()}
    annotate, identify = counts["annotate"], counts["identify"]
    dropped = count_reasons(read_dropped(run.stage_folder("annotate")))
    result = read_json(run.stage_folder("evaluate") / "evaluate.json") if manifests["evaluate"] else None
    gap = identify.get("gap", 0)
    return AlignReport(
        run=str(run.folder),
        images=annotate.get("images", 0),
        annotated=annotate.get("annotated", 0),
        dropped=dropped,
        verified=gap + identify.get("parity", 0),
        gap=gap,
        accuracy=AlignAccuracy(**result["accuracy"], n=result["n"]) if result else None,
        gain=result["gain"] if result else None,
        gain_ci95=tuple(result["gain_ci95"]) if result else None,
        p_mcnemar=result["p_mcnemar"] if result else None,
        seconds={name: manifest.seconds for name, manifest in manifests.items() if manifest},
        peak_rss_bytes=max(peak_rss_bytes(), *(c.get("peak_rss_bytes", 0) for c in counts.values())),
    )


def plan(run: Run) -> dict[str, Any]:
    """What would run, on what, with counts, disk and memory; nothing is loaded, only what must be counted is read."""
    recipe = run.recipe
    images = _image_count(run)
    questions = images * recipe.annotate.samples_per_image
    teacher_bytes, student_bytes = (_weights_bytes(reference) for reference in (recipe.teacher, recipe.student))
    known = [size for size in (teacher_bytes, student_bytes) if size]
    return {
        "run": str(run.folder),
        "recipe": recipe.name,
        "task": recipe.task,
        "teacher": recipe.teacher,
        "student": recipe.student,
        "device": recipe.device,
        "images": images,
        "stages": {
            "annotate": f"{questions} annotations, {questions * recipe.annotate.votes} votes",
            "identify": f"up to {questions} questions to the student",
            "level": f"{recipe.level.method} on {'+'.join(recipe.level.targets)}, {_length(run)}",
            "merge": "adapter into student",
            "evaluate": _evaluation(run),
        },
        "done": [name for name in FOLDERS if run.finished(name)],
        "disk_bytes": (student_bytes or 0) * 12 + images * 400 + 10_000_000,
        "memory_bytes": 900_000_000 + 2 * max(known) if known else None,
    }


def _length(run: Run) -> str:
    level = run.recipe.level
    return f"{level.max_steps} steps" if level.max_steps else f"{level.epochs:g} epochs of the gap"


def _evaluation(run: Run) -> str:
    if not can_evaluate(run):
        return "skipped: no questions with known answers (evaluate.questions)"
    return f"{run.recipe.evaluate.n} questions to teacher, base and aligned"


def _image_count(run: Run) -> int:
    config = run.recipe.images
    if config.render is not None and not run.images:
        return min(config.render.n, run.limit or config.render.n)
    return sum(entry.drop is None for entry in run.entries)


def _weights_bytes(reference: str) -> int | None:
    """Size of a model's weights on disk; None where it is not on this machine."""
    from pathlib import Path

    from mpa_edge.vlm import resolve

    folder = Path(resolve(reference))
    if not folder.is_dir():
        return None
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if not size:
        raise MpaError(f"'{reference}' has no .safetensors weights: convert the checkpoint to safetensors first")
    return size
