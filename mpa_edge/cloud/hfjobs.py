"""The commands of the `hf` program (huggingface.co/docs/huggingface_hub, Jobs) for one job, and the script it runs."""

from __future__ import annotations

import json
import shlex
from typing import Any

from mpa_edge.cloud.job import ENVIRONMENT, Job, align_words, setup_lines
from mpa_edge.cloud.mounts import KIT
from mpa_edge.errors import MpaError

FILE = "job.sh"
IMAGE = "python:3.11"
ATTEMPTS = 3
DEFAULT_HOURS = 24
INSTALL = "pip install -U huggingface_hub"


def script(job: Job) -> str:
    """What runs in the container: set-up, then the align command with the bucket as its run folder.

    The run is written by address, not through the mount: a mounted hub bucket takes no writes in the middle of a file.
    """
    words = shlex.join(align_words(job, job.url))
    return "\n".join(["#!/bin/bash", *setup_lines(job), f"exec {ENVIRONMENT}/bin/mpa-edge {words}", ""])


def launch_words(job: Job) -> list[str]:
    """The one command. Folders of this machine are copied into a bucket of yours by `hf`, and mounted read-only."""
    hours = job.needs.most_hours or DEFAULT_HOURS
    words = ["hf", "jobs", "run", "--name", job.name, "--flavor", job.needs.gpus[0], "--timeout", f"{hours}h"]
    words += ["--attempts", str(ATTEMPTS), "--detach", "--json"]
    words += [word for name in job.secrets for word in ("--secrets", name)]
    for source, target in ((str(job.kit), KIT), *((mount.source, mount.target) for mount in job.travel.mounts)):
        if ":/" in source.removeprefix("hf:/"):
            raise MpaError(f"hf cannot mount '{source}', which holds a colon before a slash: rename the folder")
        words += ["--volume", f"{source}:{target}:ro"]
    return [*words, IMAGE, "bash", f"{KIT}/{FILE}"]


def job_id(text: str) -> str | None:
    """The id in what `hf jobs run --json` printed; None where there is none.

    >>> job_id('{"id": "6870", "name": "x", "url": "https://host/jobs/6870"}')
    '6870'
    """
    found = _document(text)
    return str(found["id"]) if isinstance(found, dict) and found.get("id") else None


def status_words(job_id: str) -> list[str]:
    """Asks for one job."""
    return ["hf", "jobs", "inspect", job_id, "--json"]


def logs_words(job_id: str, follow: bool) -> list[str]:
    """The words of a job."""
    return ["hf", "jobs", "logs", *(["--follow"] if follow else []), job_id]


def down_words(job_id: str) -> list[str]:
    """Ends a job."""
    return ["hf", "jobs", "cancel", job_id]


def status_of(text: str, _job_id: str) -> str | None:
    """A job's state in what `hf jobs inspect` printed; None where that is no JSON.

    >>> status_of('[{"id": "6870", "status": {"stage": "ERROR", "message": "timed out"}}]', "6870")
    'ERROR: timed out'
    """
    found = _document(text)
    row = found[0] if isinstance(found, list) and found else found
    status = row.get("status") if isinstance(row, dict) else None
    if not isinstance(status, dict):
        return None
    return f"{status.get('stage')}{': ' + str(status['message']) if status.get('message') else ''}"


def _document(text: str) -> Any:
    """The JSON behind notices that may stand before it."""
    starts = [at for at in (text.find("["), text.find("{")) if at >= 0]
    try:
        return json.loads(text[min(starts) :]) if starts else None
    except ValueError:
        return None
