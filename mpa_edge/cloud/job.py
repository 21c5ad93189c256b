"""A job: what runs, what it needs, where its run is kept. Rendering and launching start from this record alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpa_edge.cloud.left_out import SKY_IGNORE
from mpa_edge.cloud.machine import Needs
from mpa_edge.cloud.mounts import IMAGES, KIT, OUT, Travel
from mpa_edge.cloud.names import split_bucket
from mpa_edge.config.recipe import Recipe
from mpa_edge.runs.files import make_folder, write_bytes
from mpa_edge.runs.wheel import CONSTRAINTS, build_wheel, constraints, wheel_name
from mpa_edge.vlm.openai.reference import is_server

CLOUD = "cloud"
RECIPE = "recipe.yaml"
ENVIRONMENT = '"$HOME/mpa-edge-env"'
GET_UV = "python3 -m pip install --quiet --user uv"
PYTHON = "3.11"  # what constraints.txt was tested with


@dataclass(frozen=True)
class Job:
    """One alignment somewhere else."""

    name: str
    """Of the job, and of its run in the bucket."""
    provider: str
    """sky or hf."""
    folder: Path
    """Of this machine, absolute: what was launched, and later the fetched run."""
    bucket: str
    """Address under which the run's folder lies."""
    recipe: Recipe
    """Validated, overrides applied."""
    recipe_file: Path | None
    """Somebody's own file, which travels; None: one that comes with mpa-edge."""
    source: str
    """The recipe's name, where it has no file."""
    options: tuple[str, ...]
    """Further words of the align command, as they were given."""
    travel: Travel
    """What must be there."""
    secrets: tuple[str, ...]
    """Names of environment variables."""
    needs: Needs
    """The machine."""
    far_bytes: int = 0
    """About so many of pictures at an address."""
    spot: bool = True
    """Whether a cheaper machine that may go at any moment will do."""

    @property
    def url(self) -> str:
        """Where the run is kept."""
        return f"{self.bucket}/{self.name}"

    @property
    def kit(self) -> Path:
        """The small files that travel."""
        return self.folder / CLOUD / "kit"

    @property
    def out(self) -> str:
        """The run's path where the job runs: below the mounted bucket."""
        return "/".join(part for part in (OUT, split_bucket(self.bucket)[1], self.name) if part)


def align_words(job: Job, out: str) -> list[str]:
    """The align command as the job gives it; each attempt gives the same, so that it goes on where the last one was."""
    recipe = f"{KIT}/{RECIPE}" if job.recipe_file else job.source
    images = ["--images", IMAGES] if any(mount.what == "images" for mount in job.travel.mounts) else []
    moved = [word for override in job.travel.overrides for word in ("--set", override)]
    return ["align", recipe, *images, "--out", out, *job.options, *moved]


def extras(recipe: Recipe, options: Sequence[str] = ()) -> tuple[str, ...]:
    """Extras of mpa-edge that a recipe and its options need."""
    level = recipe.level
    needed = {
        "align": True,
        "openai": is_server(recipe.teacher),
        "qlora": level.quantize is not None,
        "liger": level.liger,
        "ray": "ray" in options,
    }
    return tuple(name for name, is_needed in needed.items() if is_needed)


def setup_lines(job: Job) -> list[str]:
    """Shell commands that install this very version, with the versions of libraries it was tested with."""
    wanted = f"mpa-edge[{','.join(extras(job.recipe, job.options))}] @ file://{KIT}/{wheel_name()}"
    return [
        "set -eu",
        'export PATH="$HOME/.local/bin:$PATH"',
        f"command -v uv >/dev/null 2>&1 || {GET_UV} || {GET_UV} --break-system-packages",
        f"uv venv --quiet --allow-existing --python {PYTHON} {ENVIRONMENT}",
        f"uv pip install --quiet --python {ENVIRONMENT}/bin/python --constraint {KIT}/{CONSTRAINTS} '{wanted}'",
    ]


def write_kit(job: Job) -> None:
    """The small files that travel, and nothing else, in the job's local folder."""
    make_folder(job.kit)
    for path in job.kit.iterdir():
        path.unlink()
    for name, content in kit_files(job):
        write_bytes(job.kit / name, content)


def kit_files(job: Job) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the kit."""
    yield SKY_IGNORE, b"# nothing: all of this folder travels, whatever git ignores\n"
    yield wheel_name(), build_wheel()
    yield CONSTRAINTS, constraints().read_bytes()
    if job.recipe_file:
        yield RECIPE, job.recipe_file.read_bytes()
    for name, path in job.travel.files.items():
        yield name, path.read_bytes()
