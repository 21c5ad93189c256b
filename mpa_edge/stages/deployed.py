"""The student as a device will have it: an export of it, made before identify by whoever may export.

What the device's precision and image budget cost is then part of the gap, and can be leveled. Stages and exporters meet
in files: the export lies in `runs/NAME/deployed/`, and a note beside it says what it is.
"""

from __future__ import annotations

from pathlib import Path

from mpa_edge.artifact import is_artifact
from mpa_edge.errors import MpaError
from mpa_edge.runs.files import read_json, sha256_json, write_json
from mpa_edge.runs.manifest import MANIFEST
from mpa_edge.stages.run import Run
from mpa_edge.vlm import resolve

FOLDER = "deployed"
NOTE = "deployed.json"


def is_deployed(run: Run) -> bool:
    """Whether the student is to answer as an export."""
    return run.recipe.identify.student == "as-deployed"


def exports_folder(run: Run) -> Path:
    """Where the student's exports go."""
    return run.folder / FOLDER


def wanted(run: Run) -> dict[str, str | None]:
    """What the recipe asks for."""
    config = run.recipe.identify
    return {"student": run.student_fingerprint, "target": config.target, "scheme": config.scheme}


def note(run: Run, export: Path) -> None:
    """Write down which export is the student of this recipe."""
    write_json(exports_folder(run) / NOTE, wanted(run) | {"export": export.name})


def deployed_folder(run: Run) -> Path:
    """The export that answers in the student's place. MpaError where it is missing, or one for another recipe."""
    stored = read_json(exports_folder(run) / NOTE)
    known = stored if isinstance(stored, dict) else {}
    folder = exports_folder(run) / str(known.pop("export", ""))
    if known != wanted(run) or not is_artifact(folder):
        raise MpaError(
            f"{run.folder} has no student as deployed on {run.recipe.identify.target}: "
            f"run mpa-edge identify {run.folder} with the same --set first"
        )
    return folder


def student_of(run: Run) -> str:
    """Reference of what answers as the student in identify."""
    return str(deployed_folder(run)) if is_deployed(run) else run.recipe.student


def processor_of(run: Run) -> str:
    """Folder or hub id of the processor that makes the student's pictures and prompts when it is trained.

    That of an export sees pictures within the target's image budget.
    """
    return str(deployed_folder(run)) if is_deployed(run) else resolve(run.recipe.student)


def deployed_inputs(run: Run) -> dict[str, str]:
    """What verdicts and training depend on besides: every file of the export; nothing where there is none."""
    if not is_deployed(run):
        return {}
    manifest = read_json(deployed_folder(run) / MANIFEST)
    return {"deployed": sha256_json(manifest["outputs"] if isinstance(manifest, dict) else None)}
