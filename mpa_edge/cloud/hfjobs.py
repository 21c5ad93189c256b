"""The script of a Hugging Face Job (huggingface.co/docs/huggingface_hub, Jobs) and the commands of the `hf` program."""

from __future__ import annotations

import shlex
from pathlib import Path

from mpa_edge.cloud.job import ENVIRONMENT, Job, align_words, setup_lines
from mpa_edge.cloud.mounts import KIT
from mpa_edge.errors import MpaError

IMAGE = "python:3.11"
FILE = "job.sh"
ATTEMPTS = 3
DEFAULT_HOURS = 24
INSTALL = "pip install -U huggingface_hub"


def task_file(job: Job) -> Path:
    """Where the script is written."""
    return job.kit / FILE


def render(job: Job, _header: list[str]) -> str:
    """The script that runs in the container.

    The run is written by URL, not through a mount: a mounted hub bucket does not support writes inside a file.
    """
    words = shlex.join(align_words(job, job.url))
    return "\n".join(["#!/bin/bash", *setup_lines(job), f"exec {ENVIRONMENT}/bin/mpa-edge {words}", ""])


def launch_words(job: Job) -> list[str]:
    """The command that launches the job. `hf` copies local folders into a bucket of yours and mounts them read-only."""
    hours = job.needs.timeout_hours or DEFAULT_HOURS
    words = ["hf", "jobs", "run", "--name", job.name, "--flavor", job.needs.gpus[0], "--timeout", f"{hours}h"]
    words += ["--attempts", str(ATTEMPTS), "--detach", "--json"]
    words += [word for name in job.secrets for word in ("--secrets", name)]
    for source, target in ((str(job.kit), KIT), *((mount.source, mount.target) for mount in job.mounts)):
        if ":/" in source.removeprefix("hf:/"):
            raise MpaError(f"hf cannot mount '{source}', which has a colon before a slash: rename the folder")
        words += ["--volume", f"{source}:{target}:ro"]
    return [*words, IMAGE, "bash", f"{KIT}/{FILE}"]
