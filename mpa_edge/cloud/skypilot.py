"""A SkyPilot task (docs.skypilot.co, YAML specification) and the commands of the `sky` program."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from mpa_edge.cloud.job import CLOUD, ENVIRONMENT, MOST_COPIED_BYTES, Job, align_words, setup_lines
from mpa_edge.cloud.mounts import KIT, OUT
from mpa_edge.cloud.names import split_bucket
from mpa_edge.errors import MpaError

INSTALL = "pip install 'skypilot[aws]' in an environment of its own"
RESTARTS_ON_ERRORS = 2
"""Machines that are taken away are replaced without limit."""


def task_file(job: Job) -> Path:
    """Where the task is written."""
    return job.folder / CLOUD / "task.yaml"


def render(job: Job, header: list[str]) -> str:
    """The task file, with `header` as comments. Secrets are names: `sky` takes the values from the environment.

    Strings are written as JSON, which is valid YAML: SkyPilot reads YAML 1.1, where more words than true and false have
    a meaning of their own.
    """
    needs, run = job.needs, shlex.join(align_words(job, job.out))
    # a list is an order: the cheapest run first, the next one if that machine is not available
    gpus = [f"  accelerators: {json.dumps(list(needs.gpus))}"] if needs.gpus else []
    mounts: dict[str, object] = {KIT: str(job.kit)}
    for mount in job.mounts:
        # many small files that are read several times: one request for each would be slow, so they are copied
        is_read_there = mount.size_bytes is None and job.far_bytes > MOST_COPIED_BYTES
        mounts[mount.target] = {"source": mount.source, "mode": "MOUNT"} if is_read_there else mount.source
    # written to the machine's disk at once and to the bucket afterwards: renaming and locking work as on a disk
    mounts[OUT] = {"source": split_bucket(job.bucket)[0], "mode": "MOUNT_CACHED"}
    for path, source in mounts.items():
        if any(f"${name}" in f"{path} {source}" or f"${{{name}" in f"{path} {source}" for name in job.secrets):
            # sky would put the value in its place, and print it
            raise MpaError(f"the path '{source}' contains the name of a secret after a $: rename the folder")
    lines = [
        *(f"# {line}".rstrip() for line in header),
        f"name: {json.dumps(job.name)}",
        "resources:",
        *gpus,
        f'  memory: "{needs.memory_gb}+"',
        f"  disk_size: {needs.disk_gb}",
        f"  use_spot: {json.dumps(job.spot)}",
        "  job_recovery:",
        "    strategy: EAGER_NEXT_REGION",
        f"    max_restarts_on_errors: {RESTARTS_ON_ERRORS}",
        "file_mounts:",
        *(f"  {path}: {json.dumps(source, ensure_ascii=False)}" for path, source in mounts.items()),
        "setup: |",
        *(f"  {line}" for line in setup_lines(job)),
        "run: |",
        "  set -eu",
        f"  exec {ENVIRONMENT}/bin/mpa-edge {run}",
        *(["secrets:"] if job.secrets else []),
        *(f"  {json.dumps(name)}: null" for name in job.secrets),
    ]
    return "\n".join([*lines, ""])


def launch_words(job: Job) -> list[str]:
    """The command that launches the job."""
    secrets = [word for name in job.secrets for word in ("--secret", name)]
    return ["sky", "jobs", "launch", "--name", job.name, "--detach-run", "--yes", *secrets, str(task_file(job))]
