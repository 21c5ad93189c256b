"""Runs under SkyPilot's own Python: what it makes of task files and command lines. JSON in on stdin, JSON out."""

from __future__ import annotations

import json
import sys
from typing import Any


def read(path: str) -> dict[str, Any]:
    """A task file as SkyPilot understands it, or why it does not; `filled`: once secrets are given."""
    import sky
    import yaml
    from sky.data.storage_utils import get_excluded_files

    try:
        task = sky.Task.from_yaml(path)
        with open(path, encoding="utf-8") as file:
            config = yaml.safe_load(file)
        filled = sky.Task.from_yaml_config(
            config, secrets_overrides=[(name, "value") for name in config.get("secrets", {})]
        )
    except (ValueError, TypeError, sky.exceptions.InvalidSkyPilotConfigError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    task.expand_and_validate_file_mounts()
    first, *_ = task.resources
    folders = [source for source in task.file_mounts.values() if source.startswith("/")]
    return {
        "name": task.name,
        "run": task.run,
        "setup": task.setup,
        "ordered": isinstance(task.resources, list),
        "accelerators": [resource.accelerators for resource in task.resources],
        "spot": first.use_spot,
        "memory": first.memory,
        "disk_gb": first.disk_size,
        "recovery": first.job_recovery,
        "values": sorted(task.secrets),
        "filled": sorted(filled.secrets),
        "envs": task.envs,
        "files": task.file_mounts,
        "left_out": [name for folder in folders for name in get_excluded_files(folder)],
        "mounts": {path: [storage.source, storage.mode.value] for path, storage in task.storage_mounts.items()},
    }


def parsed(words: list[str]) -> dict[str, Any]:
    """What the `sky` program reads in a command line; nothing is run."""
    from sky.client.cli import command

    found, rest = command.cli, words[1:]
    while hasattr(found, "get_command"):
        found, rest = found.get_command(None, rest[0]), rest[1:]
    try:
        context = found.make_context(found.name, rest)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"params": {name: repr(value) for name, value in context.params.items() if value}}


def main() -> None:
    asked = json.load(sys.stdin)
    answers = {"tasks": [*map(read, asked["tasks"])], "commands": [*map(parsed, asked["commands"])]}
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
