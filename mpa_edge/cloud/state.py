"""What was launched, where, and by which command: one file in the run's local folder. It holds no secret."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mpa_edge.cloud.job import CLOUD
from mpa_edge.errors import MpaError
from mpa_edge.runs.files import read_json, write_json
from mpa_edge.runs.manifest import RUN_FILE

FILE = "job.json"
RUNS = Path("runs")


class Launched(BaseModel):
    """A job that was launched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    """Of the file."""
    name: str
    """Of the job."""
    provider: Literal["sky", "hf"]
    """Whose program knows it."""
    url: str
    """Where the run is kept."""
    command: tuple[str, ...]
    """As it was given."""
    launched_at: datetime.datetime
    """When, UTC."""
    version: str
    """Of mpa-edge."""
    planned_hours: float | None = None
    """At most, by the plan."""
    planned_usd: float | None = None
    """On the cheapest machine, by the plan."""
    state: Literal["launching", "launched", "down"]
    """What this machine knows; the provider knows more."""
    job_id: str | None = None
    """The provider's own name of it."""
    secrets: tuple[str, ...] = ()
    """Names of environment variables that were sent."""


def state_file(folder: Path) -> Path:
    """Where a job's record lies."""
    return folder / CLOUD / FILE


def write_state(folder: Path, launched: Launched) -> None:
    """Write the record."""
    write_json(state_file(folder), launched)


def read_state(folder: Path) -> Launched | None:
    """The record of a folder; None where there is none. MpaError where it is damaged."""
    if not state_file(folder).is_file():
        return None
    try:
        return Launched.model_validate(read_json(state_file(folder)))
    except ValidationError as error:
        raise MpaError(f"{state_file(folder)} is damaged: remove it, and look at the job with sky or hf") from error


def find_job(name: str) -> tuple[Path, Launched]:
    """Folder and record of a job by its name, or by its folder. MpaError naming those that there are."""
    for folder in (Path(name), RUNS / name):
        launched = read_state(folder)
        if launched is not None:
            return folder, launched
    known = sorted(path.parent.parent.name for path in RUNS.glob(f"*/{CLOUD}/{FILE}"))
    tip = f"use one of {', '.join(known)}" if known else "launch one with mpa-edge align RECIPE --cloud"
    raise MpaError(f"no cloud job '{name}' here: {tip}, or give its folder")


def require_unused(folder: Path, name: str) -> None:
    """MpaError where a folder belongs to another run, or its job may still be at work."""
    launched = read_state(folder)
    if launched is None:
        if (folder / RUN_FILE).is_file():
            raise MpaError(f"{folder} is a run of this machine: choose another folder, --out runs/{name}-cloud")
        return
    if launched.state != "down":
        raise MpaError(
            f"job '{launched.name}' was launched from {folder} before: mpa-edge cloud status {folder}, "
            f"or end it first: mpa-edge cloud down {folder}"
        )
