"""The five stages in order, and the report of what a run has reached."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from mpa_edge.errors import MpaError
from mpa_edge.planning.counts import can_evaluate
from mpa_edge.progress import say
from mpa_edge.runs.lock import run_lock
from mpa_edge.runs.log import logger
from mpa_edge.runs.manifest import FOLDERS, damaged, read_manifest
from mpa_edge.runs.memory import peak_rss_bytes
from mpa_edge.runs.parquet import count_reasons, read_dropped
from mpa_edge.runs.write_hooks import tell
from mpa_edge.stages.annotate.stage import annotate_settings, run_annotate
from mpa_edge.stages.evaluate import result_of, run_evaluate
from mpa_edge.stages.identify import identify_inputs, run_identify
from mpa_edge.stages.level.stage import ASKED_ABOUT, level_inputs, run_level
from mpa_edge.stages.merge import merge_inputs, run_merge
from mpa_edge.stages.preflight import preflight
from mpa_edge.stages.run import Run, not_finished, remember
from mpa_edge.stages.silver import run_silver
from mpa_edge.types import AlignAccuracy, AlignReport

STAGES: dict[str, Callable[[Run, bool], None]] = {
    "annotate": run_annotate,
    "identify": run_identify,
    "level": run_level,
    "merge": run_merge,
    "evaluate": run_evaluate,
}
# the inputs that a finished stage must have been made from; images are not read again for this
MADE_FROM: dict[str, Callable[[Run], dict[str, str]]] = {
    "annotate": annotate_settings,
    "identify": identify_inputs,
    "level": level_inputs,
    "merge": merge_inputs,
}


def run_stages(run: Run, names: tuple[str, ...] = tuple(STAGES), fresh: bool = False) -> None:
    """Run the named stages in order; what is done and unchanged is skipped.

    Where no held-out questions are named and the teacher may write none (`evaluate.holdout: 0`), evaluate is skipped,
    or an MpaError where it is the only stage.
    """
    check_earlier(run, names[0])
    preflight(run, names)
    with run_lock(run.folder):
        remember(run)
        logger.debug("recipe: %s", run.recipe.model_dump_json(exclude_defaults=True))
        for name in names:
            if name == "evaluate" and not can_evaluate(run.recipe):
                why = f"task {run.task.name} has no held-out questions"
                if len(names) == 1:
                    raise MpaError(f"{why}: name a file with --set evaluate.questions=FILE.jsonl")
                say(f"evaluate: skipped, {why} (--set evaluate.questions=FILE.jsonl)")
                continue
            if name == "evaluate" and len(names) == 1 and run.recipe.silver:
                run_silver(run)
            STAGES[name](run, fresh)
            tell(run.folder, settled=True)
            if name == "annotate" and "evaluate" in names and run.recipe.silver:
                run_silver(run, fresh)
                tell(run.folder, settled=True)


def check_earlier(run: Run, name: str) -> None:
    """Raise MpaError where a stage that `name` builds on is missing, damaged, or made with other settings."""
    for earlier in list(STAGES)[: list(STAGES).index(name)]:
        folder = run.stage_folder(earlier)
        manifest = read_manifest(folder)
        if manifest is None:
            raise not_finished(run.folder, earlier)
        changed = [key for key, value in MADE_FROM[earlier](run).items() if manifest.inputs.get(key) != value]
        if changed:
            trained = ASKED_ABOUT in changed
            what = f"learned from {ASKED_ABOUT}" if trained else "was made with other settings or models"
            raise MpaError(
                f"{earlier} in {run.folder} {what}: run mpa-edge {earlier} {run.folder} with the same --set first"
            )
        wrong = damaged(folder, manifest)
        if wrong:
            raise MpaError(f"{folder / wrong[0]} is missing or was changed: rerun mpa-edge {earlier} {run.folder}")


def report(run: Run) -> AlignReport:
    """The results of a run so far; None where a stage has not run."""
    manifests = {name: read_manifest(run.stage_folder(name)) for name in FOLDERS}
    counts = {name: manifest.counts if manifest else {} for name, manifest in manifests.items()}
    made, judged = counts["annotate"], counts["identify"]
    done = (run.stage_folder(name) for name in ("annotate", "identify") if manifests[name])
    result = result_of(run) or {}
    gap = judged.get("gap", 0)
    return AlignReport(
        run=str(run.folder),
        images=made.get("images", 0),
        annotated=made.get("annotated", 0),
        dropped=count_reasons(chain.from_iterable(read_dropped(folder) for folder in done)),
        verified=gap + judged.get("parity", 0),
        gap=gap,
        truth=result.get("truth", "labels") if result else None,
        **{name: result.get(name) for name in ("n_reviewed", "teacher_accuracy", "teacher_ci95", "method")},
        accuracy=AlignAccuracy(**result["accuracy"], n=result["n"]) if result else None,
        gain=result.get("gain"),
        gain_ci95=tuple(result["gain_ci95"]) if result else None,
        p_mcnemar=result.get("p_mcnemar"),
        seconds={name: manifest.seconds for name, manifest in manifests.items() if manifest},
        peak_rss_bytes=max(peak_rss_bytes(), *(c.get("peak_rss_bytes", 0) for c in counts.values())),
    )
