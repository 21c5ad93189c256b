"""A SkyPilot task (docs.skypilot.co, YAML specification) and the commands of the `sky` program for one job."""

from __future__ import annotations

import json
import shlex
from io import StringIO
from pathlib import Path
from typing import Any

from mpa_edge.cloud.job import ENVIRONMENT, Job, align_words, setup_lines
from mpa_edge.cloud.mounts import KIT, MOST_COPIED_BYTES, OUT, Mount
from mpa_edge.cloud.names import split_bucket
from mpa_edge.errors import MpaError

FILE = "task.yaml"
RESTARTS_ON_ERRORS = 2
"""Beside the recovery of machines that go, which has no limit."""
UNKNOWN = "not in the queue of sky"
INSTALL = "pip install 'skypilot[aws]' in an environment of its own"


def task(job: Job) -> dict[str, Any]:
    """The task as a document. Secrets are names without values: `sky` takes those from the environment at the start."""
    document: dict[str, Any] = {
        "name": job.name,
        "resources": _resources(job),
        "file_mounts": _mounts(job),
        "setup": "\n".join(setup_lines(job)) + "\n",
        "run": f"set -eu\nexec {ENVIRONMENT}/bin/mpa-edge {shlex.join(align_words(job, job.out))}\n",
    }
    if job.secrets:
        document["secrets"] = dict.fromkeys(job.secrets)
    return document


def _resources(job: Job) -> dict[str, Any]:
    needs = job.needs
    wanted: dict[str, Any] = {"memory": f"{needs.memory_gb}+", "disk_size": needs.disk_gb, "use_spot": job.spot}
    if needs.gpus:
        # a list is an order: the cheapest run first, the next where that is not to be had
        wanted = {"accelerators": list(needs.gpus), **wanted}
    recovery = {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": RESTARTS_ON_ERRORS}
    return {**wanted, "job_recovery": recovery}


def _mounts(job: Job) -> dict[str, Any]:
    mounts: dict[str, Any] = {KIT: str(job.kit)}
    for mount in job.travel.mounts:
        mounts[mount.target] = _source(job, mount)
    # written to the machine's disk at once, and to the bucket behind it: renaming and locking work as on a disk
    mounts[OUT] = {"source": split_bucket(job.bucket)[0], "mode": "MOUNT_CACHED"}
    for path, source in mounts.items():
        _no_variable(job, path, source)
    return mounts


def _source(job: Job, mount: Mount) -> Any:
    """A folder, or an address to copy: many small files are read several times, a request for each would be slow."""
    far = mount.size_bytes is None and job.far_bytes > MOST_COPIED_BYTES
    return {"source": mount.source, "mode": "MOUNT"} if far else mount.source


def _no_variable(job: Job, path: str, source: Any) -> None:
    """`sky` would put a secret's value in place of its name here, and print it."""
    text = f"{path} {source}"
    if any(f"${name}" in text or f"${{{name}" in text for name in job.secrets):
        raise MpaError(f"the path '{source}' holds the name of a secret behind a $: rename the folder")


def render(job: Job, header: list[str]) -> str:
    """The task file, its header as comments."""
    from ruamel.yaml import YAML

    text = StringIO()
    yaml = YAML()
    yaml.width = 10_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(_marked(task(job)), text)
    return "".join(f"# {line}".rstrip() + "\n" for line in header) + text.getvalue()


def _marked(value: Any, key: str = "") -> Any:
    """Texts in quotes, scripts as blocks: `sky` reads YAML 1.1, where more words than true and false are no texts."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

    if isinstance(value, dict):
        keys = {
            name: name if name.isidentifier() and name.islower() else DoubleQuotedScalarString(name) for name in value
        }
        return {keys[name]: _marked(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_marked(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return LiteralScalarString(value) if key in ("setup", "run") else DoubleQuotedScalarString(value)


def launch_words(job: Job, file: Path) -> list[str]:
    """The one command."""
    secrets = [word for name in job.secrets for word in ("--secret", name)]
    return ["sky", "jobs", "launch", "--name", job.name, "--detach-run", "--yes", *secrets, str(file)]


def status_words(_name: str) -> list[str]:
    """Asks for all jobs: `sky` cannot be asked for one."""
    return ["sky", "jobs", "queue", "--all", "--output", "json"]


def logs_words(name: str, follow: bool) -> list[str]:
    """The words of a job."""
    return ["sky", "jobs", "logs", "--name", name, "--follow" if follow else "--no-follow"]


def down_words(name: str) -> list[str]:
    """Ends a job; what it wrote is in the bucket before its machine goes."""
    return ["sky", "jobs", "cancel", "--name", name, "--yes", "--graceful"]


def status_of(text: str, name: str) -> str | None:
    """A job's state in what `sky jobs queue` printed; None where that is no JSON.

    >>> status_of('[{"job_name": "x", "status": "RUNNING", "recovery_count": 2}]', "x")
    'RUNNING, recovered 2 times'
    """
    try:
        rows = json.loads(text[text.index("[") :])
    except ValueError:
        return None
    mine = [row for row in rows if isinstance(row, dict) and row.get("job_name") == name]
    if not mine:
        return UNKNOWN
    latest = max(mine, key=lambda row: row.get("job_id") or 0)
    recovered = f", recovered {latest['recovery_count']} times" if latest.get("recovery_count") else ""
    why = f": {' '.join(str(latest['failure_reason']).split())}" if latest.get("failure_reason") else ""
    return f"{latest.get('status')}{recovered}{why}"
