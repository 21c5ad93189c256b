"""What would run, and whether it can: the plan that `--dry-run` prints, and the checks before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mpa_edge.engines.ray_cluster import require_ray
from mpa_edge.errors import MpaError, missing_package
from mpa_edge.families import family_of
from mpa_edge.runs.files import read_json, require_free
from mpa_edge.runs.manifest import FOLDERS, RUN_FILE
from mpa_edge.stages.level.precision import require_packages
from mpa_edge.stages.run import Run
from mpa_edge.tasks import get_benchmark, get_task
from mpa_edge.vlm import resolve
from mpa_edge.vlm.openai.reference import is_server, key_for, parse

PICTURE_BYTES = 20_000  # a minichart as PNG takes 4 to 20 kB
ROW_BYTES = 400  # one row of parquet through all stages
LIBRARIES_BYTES = 900_000_000  # torch and transformers, loaded
WORKSPACE_BYTES = 400_000_000  # a batch of pictures and its activations, small models
BYTES_A_PARAMETER = 2  # of a checkpoint as it is published: fp16 or bf16


def plan(run: Run) -> dict[str, Any]:
    """What would run, on what, with counts, disk and memory; nothing is loaded, nothing is written."""
    recipe, images = run.recipe, image_count(run)
    questions = images * recipe.annotate.samples_per_image
    return {
        "run": str(run.folder),
        "recipe": recipe.name,
        "task": run.task.name,
        "teacher": recipe.teacher,
        "student": recipe.student,
        "device": recipe.device,
        "images": images,
        "stages": {
            "annotate": f"{questions} annotations, {questions * recipe.annotate.votes} votes",
            "identify": f"up to {questions} questions to the student" + _teacher_pass(run, questions),
            "level": f"{recipe.level.method} on {'+'.join(recipe.level.targets)}, {_length(run)}",
            "merge": "adapter into student",
            "evaluate": _evaluation(run),
        },
        "done": [name for name in FOLDERS if run.finished(name)],
        "disk_bytes": disk_bytes(run, images),
        "memory_bytes": memory_bytes(run),
    }


def can_evaluate(run: Run) -> bool:
    """Whether there are questions with known answers: a file, or the generator's for the built-in task."""
    return not run.recipe.evaluate.generated or run.recipe.task == "minicharts"


def _teacher_pass(run: Run, questions: int) -> str:
    return f" and {questions} to the teacher" if run.recipe.annotate.votes == 0 else ""


def _length(run: Run) -> str:
    level = run.recipe.level
    return f"{level.max_steps} steps" if level.max_steps else f"{level.epochs:g} epochs of the gap"


def _evaluation(run: Run) -> str:
    if not can_evaluate(run):
        return "skipped: no questions with known answers (evaluate.questions or evaluate.benchmark)"
    return f"{run.recipe.evaluate.n} questions to teacher, base and aligned"


def image_count(run: Run) -> int:
    """Images that would be looked at; those that the generator would draw are not drawn for it."""
    config = run.recipe.images
    if config.render is not None and not run.images:
        return min(config.render.n, run.limit or config.render.n)
    return sum(entry.drop is None for entry in run.entries)


def disk_bytes(run: Run, images: int) -> int:
    """Estimate of what a whole run writes: pictures, rows, three checkpoints, adapter, merged model in fp32."""
    recipe = run.recipe
    drawn = recipe.images.render.n if recipe.images.render and not run.images else 0
    asked = recipe.evaluate.n if can_evaluate(run) else 0
    drawn += asked if recipe.evaluate.generated else 0
    rows = images * recipe.annotate.samples_per_image + 3 * asked
    merged = 2 * (weights_bytes(recipe.student) or 0)
    # a checkpoint holds weights and two moments; three may be there at once, and then what was learned
    trained = merged if recipe.level.method == "full" else merged // 8
    return drawn * PICTURE_BYTES + rows * ROW_BYTES + 10 * trained + merged + 5_000_000


def memory_bytes(run: Run) -> int | None:
    """Estimate of the peak: libraries, and teacher or trained student in fp32; None where one is not here."""
    teacher, student = (weights_bytes(reference) for reference in (run.recipe.teacher, run.recipe.student))
    if teacher is None or student is None:
        return None
    # all weights free: gradients and two moments beside them; merging holds two copies
    copies = 4 if run.recipe.level.method == "full" else 2
    return LIBRARIES_BYTES + WORKSPACE_BYTES + 4 // BYTES_A_PARAMETER * max(teacher, copies * student)


def weights_bytes(reference: str) -> int | None:
    """Size of a model's weights on disk; None where it is not on this machine. MpaError where it has none.

    A model behind a server takes nothing here.
    """
    if is_server(reference):
        parse(reference)
        return 0
    folder = Path(resolve(reference))
    if not folder.is_dir():
        return None
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if not size:
        raise MpaError(f"'{reference}' has no .safetensors weights: convert the checkpoint to safetensors first")
    return size


def preflight(run: Run, names: Sequence[str]) -> None:
    """Everything that can be found wrong before a model is loaded or a file is written. Raises MpaError."""
    _check_folder(run.folder)
    if run.engine.name == "ray":
        require_ray(run.engine.address)
    _check_limit(run, names)
    run.task  # noqa: B018  (an unknown task is an error here, not in an hour)
    weights_bytes(run.recipe.teacher)
    weights_bytes(run.recipe.student)
    _check_family(run)
    if "level" in names and not run.finished("level"):
        require_packages(run.recipe.level)
    _check_server(run, names)
    _check_metric(run)
    if "evaluate" in names and not run.recipe.evaluate.generated:
        from mpa_edge.stages.evaluate import questions

        questions(run)
    if "annotate" in names:
        require_free(run.folder, disk_bytes(run, image_count(run)) if not run.finished("annotate") else 0)


def _check_folder(folder: Path) -> None:
    """A folder with somebody's own files is not for us to write into."""
    if folder.exists() and not folder.is_dir():
        raise MpaError(f"'{folder}' is a file: choose another --out")
    if folder.is_dir() and not (folder / RUN_FILE).is_file():
        foreign = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if foreign:
            raise MpaError(f"'{folder}' is no run folder but holds files ({foreign[0]}): choose another --out")


def _check_metric(run: Run) -> None:
    """A benchmark is scored by its own metric, and the recipe's task says which one is used."""
    name = run.recipe.evaluate.benchmark
    if name and get_task(get_benchmark(name).name).metric != run.task.metric:
        raise MpaError(f"task {run.task.name} is scored by {run.task.metric}, {name} is not: use task: {name}")


def _check_server(run: Run, names: Sequence[str]) -> None:
    """What a teacher behind a server needs on this side; the server itself is waited for when it is asked."""
    if is_server(run.recipe.teacher) and "annotate" in names and not run.finished("annotate"):
        if find_spec("openai") is None:
            raise missing_package("openai", "openai")
        key_for(parse(run.recipe.teacher).base_url, run.recipe.teacher_server.api_key_env)


def _check_limit(run: Run, names: Sequence[str]) -> None:
    """Which images are used is settled by annotate; another number later would only confuse the next run."""
    stored = read_json(run.folder / RUN_FILE) or {}
    if "annotate" not in names and run.limit is not None and run.limit != stored.get("limit"):
        raise MpaError(f"--limit is settled by annotate: run mpa-edge annotate {run.folder} --limit {run.limit} first")


def _check_family(run: Run) -> None:
    """The student's family is known and has the parts that the recipe tunes; a student on a hub is checked later."""
    folder, level = Path(resolve(run.recipe.student)), run.recipe.level
    if level.method == "lora" and folder.is_dir():
        config = read_json(folder / "config.json")
        if not isinstance(config, dict):
            raise MpaError(f"{folder / 'config.json'} is damaged: copy the checkpoint again")
        family_of(str(config.get("model_type"))).target_modules(level.targets)
