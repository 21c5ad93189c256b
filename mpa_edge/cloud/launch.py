"""From the words of `mpa-edge align --cloud` to a job, its files, and the one command that starts it."""

from __future__ import annotations

import datetime
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mpa_edge import __version__
from mpa_edge.cloud import hfjobs, program, skypilot
from mpa_edge.cloud.job import CLOUD, Job, write_kit
from mpa_edge.cloud.machine import needs
from mpa_edge.cloud.mounts import MOST_COPIED_BYTES, PICTURE_BYTES, Mount, travel
from mpa_edge.cloud.names import bucket_url, job_name, printable
from mpa_edge.cloud.secrets import redactor, secret_names
from mpa_edge.cloud.state import RUNS, Launched, require_unused, write_state
from mpa_edge.config.library import find, load_recipe, names
from mpa_edge.errors import MpaError
from mpa_edge.runs.files import make_folder, write_bytes
from mpa_edge.runs.manifest import RUN_FILE
from mpa_edge.runs.remote.stores import is_url

Show = Callable[[str, bool], None]
DEFAULT_RECIPE = "minicharts"
PROGRAMS = {"sky": ("sky", skypilot.INSTALL), "hf": ("hf", hfjobs.INSTALL)}


@dataclass(frozen=True)
class Asked:
    """What a user gave beside the options of align itself."""

    provider: str
    """sky or hf."""
    source: str | None
    """Recipe: name or file."""
    images: str | None
    """Folder, address, or None."""
    out: str | None
    """Local folder."""
    name: str | None
    """Of the job."""
    bucket: str | None
    """Address."""
    gpus: str | None
    """Instead of what the plan chooses."""
    n_images: int | None
    """How many there are at an address."""
    secrets: tuple[str, ...]
    """Names."""
    spot: bool
    """Cheaper machines that may go."""
    overrides: tuple[str, ...]
    """`--set`."""
    limit: int | None
    """First images only."""
    options: tuple[str, ...]
    """All other words for align, `--set` and `--limit` among them."""
    files: dict[str, Path]
    """Files that they name, by their names in the kit."""


@dataclass(frozen=True)
class Rendered:
    """A job with its file and its command."""

    job: Job
    file: Path
    """Where the task (or script) is written."""
    text: str
    """Its content."""
    command: tuple[str, ...]
    """The one command."""

    @property
    def command_line(self) -> str:
        """The command, ready for a shell."""
        return shlex.join(self.command)


def make_job(asked: Asked) -> Job:
    """The job that a user asks for. MpaError for whatever a cloud would only say after minutes."""
    source = asked.source or DEFAULT_RECIPE
    if (Path(source) / RUN_FILE).is_file():
        raise MpaError(f"'{source}' is a run of this machine, which a job elsewhere does not see: name its recipe")
    recipe = load_recipe(source, asked.overrides)
    bucket = bucket_url(asked.bucket, asked.provider)
    name = job_name(asked.name, recipe.name)
    if asked.out and is_url(asked.out):
        raise MpaError(
            "--out is a folder of this machine, for what is fetched later: the run itself goes to --bucket URL"
        )
    folder = (Path(asked.out).expanduser() if asked.out else RUNS / name).resolve()
    require_unused(folder, name)
    printable([*asked.options, str(folder), asked.images or ""])
    moved = travel(recipe, asked.images, asked.provider)
    moved = replace(moved, files=moved.files | asked.files)
    n_images = _counted(asked, moved.mounts, recipe.images.path)
    far_bytes = _far_bytes(moved.mounts, n_images)
    copied = sum(mount.size_bytes or 0 for mount in moved.mounts) + (far_bytes if far_bytes <= MOST_COPIED_BYTES else 0)
    wanted = needs(recipe, n_images, asked.provider, asked.gpus, copied if asked.provider == "sky" else 0)
    own = None if source in names("recipes") else find("recipes", source)
    secrets = secret_names(recipe, asked.secrets, os.environ, hub=asked.provider == "hf")
    return Job(
        name,
        asked.provider,
        folder,
        bucket,
        recipe,
        own,
        source,
        asked.options,
        moved,
        secrets,
        wanted,
        far_bytes,
        asked.spot,
    )


def _far_bytes(mounts: Sequence[Mount], n_images: str | None) -> int:
    """About so many bytes lie at an address."""
    far = any(mount.what == "images" and mount.size_bytes is None for mount in mounts)
    return PICTURE_BYTES * int(n_images) if far and n_images else 0


def _counted(asked: Asked, mounts: Sequence[Mount], named: str | None) -> str | None:
    """What the plan takes for the pictures: a folder, or how many there are. MpaError where nobody can count them."""
    far = any(mount.what == "images" and mount.size_bytes is None for mount in mounts)
    if asked.n_images is not None:
        return str(min(asked.n_images, asked.limit or asked.n_images))
    if not far:
        return asked.images or named
    if asked.limit is not None:
        return str(asked.limit)
    raise MpaError(f"the pictures at {asked.images or named} are not counted from here: add --image-count N")


def render(job: Job, estimate: Sequence[str]) -> Rendered:
    """The file and the command of a job; nothing is written."""
    if job.provider == "hf":
        file = job.kit / hfjobs.FILE
        return Rendered(job, file, hfjobs.script(job), tuple(hfjobs.launch_words(job)))
    file = job.folder / CLOUD / skypilot.FILE
    words = tuple(skypilot.launch_words(job, file))
    header = [f"{job.name}: mpa-edge {__version__} aligns {job.recipe.name} on a rented machine", *estimate]
    header += ["start it:", f"  {shlex.join(words)}"]
    return Rendered(job, file, skypilot.render(job, header), words)


def write(rendered: Rendered) -> None:
    """The kit and the file, in the job's local folder."""
    write_kit(rendered.job)
    make_folder(rendered.file.parent)
    write_bytes(rendered.file, rendered.text.encode())


def launch(rendered: Rendered, found: str, show: Show) -> Launched:
    """Start a job that is written. Its record is there before the provider knows it, so that it is never lost.

    MpaError where the program fails; what it said was shown.
    """
    job = rendered.job
    dollars = [one.usd for one in job.needs.chosen if one.usd is not None]
    launched = Launched(
        name=job.name,
        provider="hf" if job.provider == "hf" else "sky",
        url=job.url,
        command=rendered.command,
        launched_at=datetime.datetime.now(datetime.UTC).replace(microsecond=0),
        version=__version__,
        planned_hours=job.needs.hours,
        planned_usd=min(dollars, default=None),
        state="launching",
        secrets=job.secrets,
    )
    make_folder(job.folder / CLOUD)
    write_state(job.folder, launched)
    try:
        ended = program.run((found, *rendered.command[1:]), redactor(job.secrets, os.environ), show)
    except MpaError:
        write_state(job.folder, launched.model_copy(update={"state": "down"}))
        raise
    if ended.code != 0:
        write_state(job.folder, launched.model_copy(update={"state": "down"}))
        raise MpaError(
            f"{rendered.command[0]} ended with exit code {ended.code}, its own words are above: mend that, and give "
            "the same mpa-edge command again"
        )
    identity = hfjobs.job_id(ended.out) if job.provider == "hf" else None
    launched = launched.model_copy(update={"state": "launched", "job_id": identity})
    write_state(job.folder, launched)
    return launched
