"""manifest.json of an export: every file with its hash, the scheme as resolved, and how close it is to the original."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from mpa_edge.config.scheme import Component
from mpa_edge.errors import MpaError
from mpa_edge.evaluation.review import ReviewFigures
from mpa_edge.metrics.gain import Word
from mpa_edge.runs.files import read_json, sha256_file
from mpa_edge.runs.manifest import MANIFEST, output_files
from mpa_edge.runs.paths import inside, names_in
from mpa_edge.types import Inside, Record, Truth

CARD = "README.md"


class FileEntry(Record):
    """One file."""

    path: Inside
    """Inside the folder."""
    bytes: int
    """Size."""
    sha256: str
    """Hex digest."""

    def is_in(self, folder: Path) -> bool:
        """Whether the file is in a folder, unchanged."""
        path = inside(folder, self.path)
        return path.is_file() and path.stat().st_size == self.bytes and sha256_file(path) == self.sha256


class AccuracyFigures(Record):
    """Strict metric on the same held-out questions, 0 to 1; where the truth is the teacher's, agreement with it."""

    base: float
    """The student before alignment, fp32."""
    aligned: float
    """The student after alignment, fp32."""
    artifact: float
    """What was exported."""
    n: int
    """Questions."""
    ci95: tuple[float, float]
    """95 % interval of the artifact's accuracy, clustered by image."""
    loss_upper: float
    """Upper 95 % bound of aligned - artifact (one-sided), by all answers: a review of some does not change it."""
    retained_gain: float | None
    """(artifact - base) / (aligned - base); null where there was no gain to keep."""
    verdict: Word
    """Whether at least half of the gain is left: holds, lost, or inconclusive on so many questions."""
    reasons: tuple[str, ...]
    """Why."""
    truth: Truth = "labels"
    """What answers are compared with; teacher: the figures are no accuracies, but the agreement with the teacher."""
    review: ReviewFigures | None = None
    """What a person's review says; null unless the truth is reviewed."""
    questions_sha256: str
    """Of the questions, and of what was decided about them: others are measured anew."""


class Refusal(Record):
    """A scheme that was tried before the one that was chosen."""

    key: str
    """SHA-256 of everything that the decision depends on."""
    scheme: str
    """Its name."""
    reason: str
    """Why it was refused."""
    accuracy: AccuracyFigures | None
    """Null where it was refused before its accuracy was measured."""


class ExportManifest(Record):
    """What made an export. Written last: a folder without one is not finished."""

    schema_version: Literal[1] = 1
    """Of this document."""
    stage: Literal["export"] = "export"
    """As in every manifest of a run."""
    inputs: dict[str, str]
    """Everything the files depend on: name -> sha256 or value."""
    scheme: dict[str, Any]
    """As resolved: with what the target changed."""
    target: str | None
    """Name of the target, where one was named."""
    files: dict[Component, FileEntry]
    """Component -> its main file."""
    outputs: dict[Inside, FileEntry]
    """Every file of the folder by path; without the card, which is rewritten when accuracy is measured."""
    notes: tuple[str, ...]
    """Where the result is not what the scheme's name says, for example tensors that kept more bits."""
    parity: dict[str, Any]
    """Figures of the comparison with the checkpoint."""
    parity_details: dict[str, Any]
    """What lies behind them."""
    accuracy: AccuracyFigures | None = None
    """Null until it is measured."""
    refused: tuple[Refusal, ...] = ()
    """Schemes that were tried before this one."""
    versions: dict[str, str]
    """Python, mpa-edge and the libraries that did the work."""
    seconds: float
    """Wall seconds of this export; what several schemes share is counted once."""
    peak_rss_bytes: int
    """Largest resident memory of any process of this export."""


def read_export_manifest(folder: Path) -> ExportManifest | None:
    """The manifest of an export; None where it is missing or damaged. OutsideError where it names other files."""
    try:
        with names_in(folder / MANIFEST):
            return ExportManifest.model_validate(read_json(folder / MANIFEST))
    except ValidationError:
        return None


def finished(folder: Path) -> ExportManifest:
    """The manifest of a finished export. MpaError where there is none."""
    manifest = read_export_manifest(folder)
    if manifest is None:
        raise MpaError(f"{folder} is not a finished export: run mpa-edge export first")
    return manifest


def entry(folder: Path, name: str) -> FileEntry:
    """Size and hash of a file inside a folder."""
    path = folder / name
    return FileEntry(path=name, bytes=path.stat().st_size, sha256=sha256_file(path))


def outputs_of(folder: Path) -> dict[str, FileEntry]:
    """Every file of an export but its manifest and its card."""
    names = (path.relative_to(folder).as_posix() for path in output_files(folder))
    return {name: entry(folder, name) for name in names if name != CARD}


def component_bytes(manifest: ExportManifest, component: Component) -> int:
    """Size of a component's file with the weights beside it."""
    path = manifest.files[component].path
    return sum(file.bytes for name, file in manifest.outputs.items() if name in (path, f"{path}_data"))


def is_exported(folder: Path, inputs: Mapping[str, str]) -> bool:
    """Whether a folder holds this very export, undamaged."""
    manifest = read_export_manifest(folder)
    if manifest is None or manifest.inputs != dict(inputs):
        return False
    return all(file.is_in(folder) for file in manifest.outputs.values())
