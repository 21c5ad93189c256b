"""A job: one alignment on a rented machine, what it needs, and the files that go there with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpa_edge.cloud.machine import Needs, needs
from mpa_edge.cloud.mounts import IMAGES, KIT, OUT, SKY_IGNORE, Mount, find_mounts
from mpa_edge.cloud.names import bucket_url, job_name, require_printable, secret_names, split_bucket
from mpa_edge.config.library import find, is_path, load_recipe, names, yaml_of
from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.runs.files import make_folder, write_bytes
from mpa_edge.runs.manifest import RUN_FILE
from mpa_edge.runs.paths import inside, remove, require_plain
from mpa_edge.runs.remote.stores import is_url
from mpa_edge.runs.wheel import CONSTRAINTS, build_wheel, constraints, wheel_name
from mpa_edge.vlm.openai.reference import is_server

CLOUD, RECORD, RECIPE, RUNS = "cloud", "job.json", "recipe.yaml", Path("runs")
DEFAULT_RECIPE = "minicharts"
ENVIRONMENT = '"$HOME/mpa-edge-env"'
GET_UV = "python3 -m pip install --quiet --user uv"
PYTHON = "3.11"  # constraints.txt was tested with it
IMAGE_BYTES = 500_000
"""Of an image behind a URL, which is not looked at: a photograph of a megapixel as JPEG."""
MOST_COPIED_BYTES = 200_000_000_000
"""Of images behind a URL: more are read from the bucket each time instead of being copied."""


@dataclass(frozen=True)
class Job:
    """One alignment on a rented machine."""

    name: str
    """Also the name of its run in the bucket."""
    provider: str
    """sky or hf."""
    folder: Path
    """Local, absolute: task file, kit and record."""
    bucket: str
    """URL of the folder that keeps the run."""
    recipe: Recipe
    """Validated, with overrides applied."""
    recipe_file: Path | None
    """Copied there; None: a recipe that comes with mpa-edge."""
    source: str
    """Name or file of the recipe, as given."""
    options: tuple[str, ...]
    """Further words of the align command."""
    mounts: tuple[Mount, ...]
    """Besides the kit and the bucket."""
    moved: tuple[str, ...]
    """`--set` values for what has another path there."""
    secrets: tuple[str, ...]
    """Names of environment variables."""
    needs: Needs
    far_bytes: int
    """Estimated size of images behind a URL."""
    spot: bool
    """Whether a cheaper machine will do that may be taken away at any moment."""

    @property
    def url(self) -> str:
        """Where the run is kept."""
        return f"{self.bucket}/{self.name}"

    @property
    def kit(self) -> Path:
        """Local folder of the small files that go there."""
        return self.folder / CLOUD / "kit"

    @property
    def record(self) -> Path:
        """What was launched from this folder."""
        return self.folder / CLOUD / RECORD

    @property
    def out(self) -> str:
        """Path of the run on the rented machine: inside the mounted bucket."""
        return "/".join(part for part in (OUT, split_bucket(self.bucket)[1], self.name) if part)


def make_job(
    *,
    provider: str,
    source: str | None,
    images: str | None,
    out: str | None,
    name: str | None,
    bucket: str | None,
    gpus: str | None,
    image_count: int | None,
    secrets: Sequence[str],
    spot: bool,
    overrides: Sequence[str],
    limit: int | None,
    options: Sequence[str],
) -> Job:
    """The job for the options of `mpa-edge align`. MpaError for whatever a cloud would report only after minutes.

    `options`: all words for the align command of the job, `--set` and `--limit` included.
    """
    source = source or DEFAULT_RECIPE
    if (Path(source) / RUN_FILE).is_file():
        raise MpaError(f"'{source}' is a local run, which a rented machine does not see: name its recipe")
    recipe = load_recipe(source, overrides)
    if any(is_path(value) for key, _, value in (one.partition("=") for one in overrides) if key.strip() == "task"):
        raise MpaError("--set task=FILE names a file that a rented machine does not see: write it into the recipe")
    bucket, name = bucket_url(bucket, provider), job_name(name, recipe.name)
    if out and is_url(out):
        raise MpaError("--out is the local folder of the job: the run itself goes to --bucket URL")
    folder = (Path(out).expanduser() if out else RUNS / name).resolve()
    _require_unused(folder, name)
    require_printable([*options, str(folder), images or ""])

    mounts, moved = find_mounts(recipe, images, provider)
    counted, far_bytes = images or recipe.images.path, 0
    if any(mount.what == "images" and mount.size_bytes is None for mount in mounts):
        found = min((n for n in (image_count, limit) if n), default=None)
        if found is None:
            raise MpaError(f"the images at {counted} are not counted from here: add --image-count N")
        counted, far_bytes = str(found), IMAGE_BYTES * found
    elif image_count is not None:
        counted = str(min(image_count, limit or image_count))
    copied = sum(mount.size_bytes or 0 for mount in mounts) + (far_bytes if far_bytes <= MOST_COPIED_BYTES else 0)
    return Job(
        name,
        provider,
        folder,
        bucket,
        recipe,
        None if source in names("recipes") else find("recipes", source),
        source,
        tuple(options),
        tuple(mounts),
        tuple(moved),
        secret_names(recipe, secrets, os.environ, hub=provider == "hf"),
        needs(recipe, counted, provider, gpus, copied if provider == "sky" else 0),
        far_bytes,
        spot,
    )


def _require_unused(folder: Path, name: str) -> None:
    """MpaError if another job was launched from a folder, or it is a local run."""
    record = folder / CLOUD / RECORD
    if record.is_file():
        raise MpaError(
            f"a job was launched from {folder} before: end it with sky jobs cancel or hf jobs cancel and remove "
            f"{record}, or choose another --cloud-name"
        )
    if (folder / RUN_FILE).is_file():
        raise MpaError(f"{folder} is a local run: choose another folder, --out runs/{name}-cloud")


def align_words(job: Job, out: str) -> list[str]:
    """The align command of the job; it resumes the run in `out` if an earlier machine was taken away."""
    recipe = f"{KIT}/{RECIPE}" if job.recipe_file else job.source
    images = ["--images", IMAGES] if any(mount.what == "images" for mount in job.mounts) else []
    moved = [word for override in job.moved for word in ("--set", override)]
    return ["align", recipe, *images, "--out", out, *job.options, *moved]


def setup_lines(job: Job) -> list[str]:
    """Shell commands that install this version of mpa-edge with the library versions that it was tested with."""
    level, extras = job.recipe.level, ["align"]
    extras += ["openai"] if is_server(job.recipe.teacher) else []
    extras += ["qlora"] if level.quantize else []
    extras += ["liger"] if level.liger else []
    extras += ["ray"] if "ray" in job.options else []
    wanted = f"mpa-edge[{','.join(extras)}] @ file://{KIT}/{wheel_name()}"
    return [
        "set -eu",
        'export PATH="$HOME/.local/bin:$PATH"',
        f"command -v uv >/dev/null 2>&1 || {GET_UV} || {GET_UV} --break-system-packages",
        f"uv venv --quiet --allow-existing --python {PYTHON} {ENVIRONMENT}",
        f"uv pip install --quiet --python {ENVIRONMENT}/bin/python --constraint {KIT}/{CONSTRAINTS} '{wanted}'",
    ]


def write_kit(job: Job) -> None:
    """The small files that go there, and nothing else, in the job's local folder."""
    files = {SKY_IGNORE: b"# copy all of this folder, whatever git ignores\n", wheel_name(): build_wheel()}
    files[CONSTRAINTS] = constraints().read_bytes()
    if job.recipe_file:
        # a task by path is a file of this machine
        own = not isinstance(job.recipe.task, str)
        files[RECIPE] = yaml_of(job.recipe) if own else job.recipe_file.read_bytes()
    require_plain(inside(job.folder, CLOUD))
    for path in make_folder(job.kit).iterdir():
        remove(path)
    for name, content in files.items():
        write_bytes(job.kit / name, content)
