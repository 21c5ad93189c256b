"""What a job must be able to read: images, and the folders that the recipe names. Each is one mount."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from mpa_edge.cloud.names import checked_url
from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.runs.remote.stores import is_url
from mpa_edge.vlm.openai.reference import is_server, parse

PLACE = "/mpa"
KIT, IMAGES, OUT = f"{PLACE}/kit", f"{PLACE}/images", f"{PLACE}/out"
MOST_BYTES = 50_000_000_000
"""Of one folder: a larger one is better copied into a bucket once than again for each job."""
SKY_IGNORE = ".skyignore"
"""In a folder with this file, `sky` reads it instead of git's ignore files."""


@dataclass(frozen=True)
class Mount:
    """A folder or a bucket that the job sees under a path."""

    what: str
    """images, teacher, student, data or questions."""
    source: str
    """Absolute local folder, or a URL."""
    target: str
    """Path on the rented machine."""
    size_bytes: int | None
    """Of a local folder; None: a URL."""


def find_mounts(recipe: Recipe, images: str | None, provider: str) -> tuple[list[Mount], list[str]]:
    """(mounts, `--set` values for what has another path there). MpaError for what a job could not read."""
    _require_reachable(recipe.teacher)
    place, asked = images or recipe.images.path, recipe.evaluate
    mounts, overrides = [], []
    if place is None and recipe.images.render is None:
        raise MpaError(f"recipe '{recipe.name}' names no images: add --images DIR, or --images s3://bucket/photos")
    if place is not None and is_url(place):
        mounts.append(Mount("images", checked_url("--images", place, provider), IMAGES, None))
    elif place is not None:
        mounts.append(_folder("images", Path(place).expanduser(), IMAGES, provider))
    named = {"teacher": recipe.teacher, "student": recipe.student}
    named |= {"evaluate.data": asked.data or "", "evaluate.questions": asked.questions or ""}
    named["level.labelled"] = recipe.level.labelled or ""
    if asked.data is not None and asked.data == recipe.images.path:
        # images and questions of a benchmark are one folder or bucket
        named["evaluate.data"] = ""
        overrides.append(f"evaluate.data={IMAGES}")
    for key, value in named.items():
        local, name = Path(value).expanduser(), key.rpartition(".")[2]
        # a hub name is not a local path
        if value and (local.is_dir() or ("." in key and local.exists())):
            inside = f"/{local.name}" if local.is_file() else ""
            mounts.append(_folder(name, local.parent if inside else local, f"{PLACE}/{name}", provider))
            overrides.append(f"{key}={PLACE}/{name}{inside}")
        elif value and key in ("evaluate.questions", "level.labelled"):
            raise MpaError(f"no file '{value}' ({key}): name a file that exists")
    return mounts, overrides


def _folder(what: str, folder: Path, target: str, provider: str) -> Mount:
    """A local folder. MpaError if it would not arrive whole, or holds more than what the job needs."""
    here = folder.resolve()
    if not here.is_dir():
        raise MpaError(f"no folder '{folder}' ({what}): name one that exists, or a URL like s3://bucket/photos")
    if here == Path.home() or here in Path.home().parents or here in (Path.cwd(), *Path.cwd().parents):
        raise MpaError(f"{what}: all of {folder} would be copied: move the files into a folder of their own")
    size_bytes = 0
    for where, below, names in os.walk(here):
        for path in (Path(where, name) for name in sorted([*below, *names])):
            if path.is_symlink():
                raise MpaError(f"{what}: {path} is a link, which is not copied: copy its target (cp -rL FOLDER COPY)")
            size_bytes += path.stat().st_size if path.is_file() else 0
    if provider == "sky" and (ignored := _ignored(here)):
        raise MpaError(
            f"{what}: sky does not copy what git ignores, {len(ignored)} files or folders in {folder} "
            f"({ignored[0]}, ...): put an empty file {SKY_IGNORE} there"
        )
    if size_bytes > MOST_BYTES:
        raise MpaError(
            f"{what}: {folder} has {size_bytes / 1e9:.0f} GB and would be copied for each job: copy it into a bucket "
            f"once (aws s3 sync {folder} s3://bucket/{what}) and name its URL"
        )
    return Mount(what, str(here), target, size_bytes)


def _ignored(folder: Path) -> list[str]:
    """Files and folders that git ignores; empty if `sky` would not ask git, or the whole folder is ignored."""
    if (folder / SKY_IGNORE).exists():
        return []
    words = ["git", "-C", str(folder), "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    except OSError:
        return []  # without git, sky does not ask it either
    found = [name for name in done.stdout.split("\0") if name] if done.returncode == 0 else []
    return [] if "./" in found else found


def _require_reachable(teacher: str) -> None:
    """MpaError if the teacher is a server that only this machine or its network reaches."""
    if not is_server(teacher):
        return
    url = parse(teacher).base_url
    host = urlsplit(url).hostname or ""
    try:
        near = ip_address(host).is_private
    except ValueError:
        near = host == "localhost" or host.endswith((".local", ".localhost"))
    if near:
        raise MpaError(f"a rented machine does not reach the teacher at {url}: give its public https URL")
