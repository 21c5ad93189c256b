"""Preflight checks before any model is loaded, and the summary that `--dry-run` prints."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mpa_edge.artifact import is_artifact
from mpa_edge.engines.ray_cluster import require_ray
from mpa_edge.errors import MpaError, missing_package
from mpa_edge.families import family_of
from mpa_edge.planning.counts import can_evaluate, n_asked_about, n_held_out, with_held_out
from mpa_edge.planning.estimate import DRAWN_PX, Images, Plan, as_machine, make_plan, sample_images
from mpa_edge.planning.model_specs import UnknownModelError
from mpa_edge.planning.records import find_device
from mpa_edge.runs.files import is_utf8, read_json, require_free
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.runs.log import LOG_FILE
from mpa_edge.runs.manifest import FOLDERS, RUN_FILE
from mpa_edge.runs.network import certificates, proxy_for
from mpa_edge.runs.paths import require_plain
from mpa_edge.stages.evaluate import questions
from mpa_edge.stages.level.labelled import labelled_rows
from mpa_edge.stages.level.precision import require_packages
from mpa_edge.stages.run import Run
from mpa_edge.tasks import get_benchmark, get_task
from mpa_edge.vlm import WEIGHTS, resolve
from mpa_edge.vlm.openai.reference import is_server, key_for, parse
from mpa_edge.vlm.transformers.files import check_files, local_folder, require_unquantized, tensor_shapes, weight_files

ASK_TEACHER = {"annotate", "identify", "evaluate"}
SAVED = {"level", "merge", "evaluate"}
ASK_STUDENT = {"identify", "level", "merge", "evaluate"}


def summary(run: Run) -> dict[str, Any]:
    """What would run, with counts, disk and memory; nothing is loaded or written."""
    recipe, level, asked = run.recipe, run.recipe.level, run.recipe.annotate
    images = image_count(run)
    wanted, planned = images * asked.samples_per_image, estimate(run)
    length = f"{level.max_steps} steps" if level.max_steps else f"{level.epochs:g} epochs of the gap"
    evaluation = "skipped: no held-out questions (evaluate.questions or evaluate.benchmark)"
    if can_evaluate(recipe):
        evaluation = _evaluation(run, images)
    return {
        "run": str(run.folder),
        "recipe": recipe.name,
        "task": run.task.name,
        "teacher": recipe.teacher,
        "student": recipe.student,
        "device": recipe.device,
        "images": images,
        "stages": {
            "annotate": f"{wanted} annotations, {wanted * asked.votes} votes",
            "identify": f"up to {wanted} questions to the student"
            + ("" if asked.votes else f" and {wanted} to the teacher"),
            "level": f"{level.method} on {'+'.join(level.targets)}, {length}",
            "merge": "adapter into student",
            "evaluate": evaluation,
        },
        "done": [name for name in FOLDERS if run.finished(name)],
        "disk_bytes": round(planned.disk_bytes) if planned else None,
        "memory_bytes": round(planned.machines[0].memory_bytes) if planned and recipe.device != "cuda" else None,
    }


def _evaluation(run: Run, images: int) -> str:
    """What evaluate would do with so many images to learn from."""
    recipe = run.recipe
    if not recipe.silver:
        n = recipe.evaluate.n if recipe.evaluate.generated else len(questions(run).samples)
        return f"{n} questions to teacher, base and aligned"
    asked, votes = n_asked_about(usable_images(run) - images, recipe), recipe.evaluate.votes
    return (
        f"up to {asked * recipe.annotate.samples_per_image} questions that the teacher writes about {asked} of "
        f"{usable_images(run) - images} held-out images and answers {votes} times, to base and aligned"
    )


def image_count(run: Run) -> int:
    """Images that would be learned from; those that the generator draws are not drawn for it."""
    usable = usable_images(run)
    return min(usable - n_held_out(usable, run.recipe), run.limit or usable) if run.recipe.silver else usable


def usable_images(run: Run) -> int:
    """The same, with those that are held out for the teacher's questions."""
    config = run.recipe.images
    if config.render is not None and not run.images:
        return min(config.render.n, with_held_out(run.limit, run.recipe) if run.limit else config.render.n)
    return sum(entry.drop is None for entry in (run.candidates if run.recipe.silver else run.entries))


def estimate(run: Run) -> Plan | None:
    """The plan of a run on this CPU (not measured); None if the sizes of models or images are not known."""
    import psutil

    recipe, render = run.recipe, run.recipe.images.render
    if render is not None and not run.images:
        images = Images(usable_images(run), (DRAWN_PX,), render.n, "drawn by the recipe's generator")
    else:
        images = sample_images(
            run.candidates if recipe.silver else run.entries, run.recipe.images.max_pixels, str(run.images_folder)
        )
    if not images.sizes:
        return None
    cpu = find_device("cpu").model_copy(update={"memory_bytes": psutil.virtual_memory().total})
    if is_server(recipe.teacher):
        # it takes nothing of this machine: the student, which is loaded anyway, stands in for it
        recipe = recipe.model_copy(update={"teacher": recipe.student})
    try:
        return make_plan(recipe, images, lambda: [as_machine("cpu", cpu)])
    except UnknownModelError:
        return None


def require_files(reference: str) -> Path | None:
    """The folder of a checkpoint, as `local_folder` finds it. MpaError where its files are not sound in form.

    None for what has no such files here: a hub id, which is checked when it is downloaded, a server, or an export.
    """
    if is_server(reference):
        parse(reference)
        return None
    folder = Path(resolve(reference))
    if not folder.is_dir() or is_artifact(folder):
        return None
    folder = local_folder(str(folder))
    tensor_shapes(weight_files(folder), floats_only="quantization_config" not in check_files(folder))
    return folder


def try_to_load(folder: str) -> None:
    """Load a checkpoint without its weights' values. MpaError where a file is damaged, or tensors are missing."""
    from mpa_edge.vlm.transformers.checkpoint import load_processor, outline

    load_processor(folder)
    outline(Path(folder))


def preflight(run: Run, names: Sequence[str]) -> None:
    """Everything that can be checked before a model is loaded or a file is written. Raises MpaError."""
    recipe, level = run.recipe, run.recipe.level
    to_run = [name for name in names if not run.finished(name)]
    _require_own_folder(run.folder)
    if not is_utf8(str(run.folder)) and SAVED & set(to_run):
        raise MpaError(
            f"the path '{run.folder}' is not UTF-8, and tokenizers cannot be saved below it: choose another --out, or "
            "change into that folder and name --out without it"
        )
    if run.engine.name == "ray":
        require_ray(run.engine.address)
    stored = read_json(run.folder / RUN_FILE) or {}
    if "annotate" not in names and run.limit is not None and run.limit != stored.get("limit"):
        raise MpaError(f"annotate sets --limit: run mpa-edge annotate {run.folder} --limit {run.limit} first")
    run.task  # noqa: B018  (an unknown task is an error now, not in an hour)
    teacher, student = require_files(recipe.teacher), require_files(recipe.student)
    if student is not None:
        config = check_files(student)
        require_unquantized(student, config)
        if level.method == "lora":
            family_of(config["model_type"]).target_modules(level.targets)
    used = {teacher: ASK_TEACHER, student: ASK_STUDENT}
    for folder in (folder for folder, stages in used.items() if folder and stages.intersection(to_run)):
        if not folder.is_relative_to(WEIGHTS) and find_spec("torch") and find_spec("transformers"):
            run_isolated(try_to_load, str(folder), once=True)
    if "level" in to_run:
        require_packages(level)
        labelled_rows(run)
    asked = {"annotate", "evaluate"} | ({"identify"} if recipe.annotate.votes == 0 else set())
    if is_server(recipe.teacher) and asked & {*to_run}:
        if find_spec("openai") is None:
            raise missing_package("openai", "openai")
        base_url = parse(recipe.teacher).base_url
        key_for(base_url, recipe.teacher_server.api_key_env)
        proxy_for(base_url)
        certificates()
    benchmark = recipe.evaluate.benchmark
    if benchmark and get_task(get_benchmark(benchmark).name).metric != run.task.metric:
        raise MpaError(
            f"task {run.task.name} is scored by {run.task.metric}, {benchmark} is not: use task: {benchmark}"
        )
    if "evaluate" in names and not recipe.evaluate.generated:
        questions(run)
    if "annotate" in to_run and not recipe.evaluate.generated and run.held_out and not image_count(run):
        raise MpaError(f"evaluation asks about every usable image in '{run.images_folder}': name other images")
    if "annotate" in to_run and (planned := estimate(run)):
        require_free(run.folder, round(planned.disk_bytes - planned.disk["downloads"]))


def _require_own_folder(folder: Path) -> None:
    """MpaError if a folder holds files that are not of a run, or links."""
    if folder.exists() and not folder.is_dir():
        raise MpaError(f"'{folder}' is a file: choose another --out")
    if folder.is_dir() and not (folder / RUN_FILE).is_file():
        foreign = sorted(path.name for path in folder.iterdir() if not path.name.startswith((".", LOG_FILE)))
        if foreign:
            raise MpaError(f"'{folder}' is not a run folder but holds files ({foreign[0]}): choose another --out")
    require_plain(folder)
