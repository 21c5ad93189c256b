"""What must be where the job runs: pictures, and a recipe's own files. Each is one mount or one small file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from mpa_edge.cloud.left_out import SKY_IGNORE, ignored, measure
from mpa_edge.cloud.names import checked_url
from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.runs.remote.stores import is_url
from mpa_edge.vlm.openai.reference import is_server, parse

PLACE = "/mpa"
EXAMPLE = "--images s3://bucket/photos"
KIT, IMAGES, OUT = f"{PLACE}/kit", f"{PLACE}/images", f"{PLACE}/out"
MOST_BYTES = 50_000_000_000
"""Of one folder: more is better copied into a bucket once, than again for each job."""
PICTURE_BYTES = 500_000
"""Of a picture at an address, where nobody has looked: a photograph of a megapixel as JPEG."""
MOST_COPIED_BYTES = 200_000_000_000
"""Pictures at an address: more than that are read there, each time."""
COPY = {
    "s3": "aws s3 sync {} {}",
    "gs": "gcloud storage rsync -r {} {}",
    "hf": "hf buckets sync {} {}",
}
"""The copying program of an address' own tools, by scheme."""


@dataclass(frozen=True)
class Mount:
    """A folder or an address that the job sees under a path."""

    what: str
    """images, teacher, student, data, questions."""
    source: str
    """Absolute folder of this machine, or an address."""
    target: str
    """Path where the job runs."""
    size_bytes: int | None
    """Of a folder of this machine; None: an address."""


@dataclass(frozen=True)
class Travel:
    """All of it."""

    mounts: tuple[Mount, ...]
    """Without the kit and the bucket."""
    files: dict[str, Path]
    """Small files of this machine that go into the kit, by their names there."""
    overrides: tuple[str, ...]
    """`--set` of what lies elsewhere there."""


def travel(recipe: Recipe, images: str | None, provider: str) -> Travel:
    """What of a recipe and its pictures has to travel. MpaError for what a job could not see."""
    _reachable(recipe.teacher)
    if images is None and recipe.images.path is None and recipe.images.render is None:
        raise MpaError(f"recipe '{recipe.name}' names no images: add --images DIR, or an address, {EXAMPLE}")
    mounts = [*_images(images or recipe.images.path, provider)]
    # a benchmark's pictures and questions are one folder: it goes where the pictures go, be it an address
    shared = recipe.evaluate.data is not None and recipe.evaluate.data == recipe.images.path
    overrides = [f"evaluate.data={IMAGES}"] if shared else []
    for key, local in _folders(recipe):
        if shared and key == "evaluate.data":
            continue
        name = key.rpartition(".")[2]
        inside = local.name if local.is_file() else ""
        mounts.append(_folder(name, local.parent if inside else local, f"{PLACE}/{name}", provider))
        overrides.append(f"{key}={PLACE}/{name}{'/' + inside if inside else ''}")
    return Travel(tuple(mounts), {}, tuple(overrides))


def _images(place: str | None, provider: str) -> Iterator[Mount]:
    """The pictures; nothing where the recipe draws them."""
    if place is None:
        return
    if is_url(place):
        yield Mount("images", checked_url("--images", place, provider), IMAGES, None)
    else:
        yield _folder("images", Path(place).expanduser(), IMAGES, provider)


def _folders(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    """Key and path of what a recipe names on this machine; names of a hub are no paths."""
    asked = recipe.evaluate
    named = {"teacher": recipe.teacher, "student": recipe.student}
    for key, value in named.items():
        if Path(value).expanduser().is_dir():
            yield key, Path(value).expanduser()
    for key, place in (("evaluate.data", asked.data), ("evaluate.questions", asked.questions)):
        if place and Path(place).expanduser().exists():
            yield key, Path(place).expanduser()
        elif place and key == "evaluate.questions":
            raise MpaError(f"no file '{place}' (evaluate.questions): name a file that exists")


def _folder(what: str, folder: Path, target: str, provider: str) -> Mount:
    """A folder of this machine. MpaError where it is none, holds this machine's own things, or is too large."""
    here = folder.resolve()
    if not here.is_dir():
        raise MpaError(f"no folder '{folder}' ({what}): name one that exists, or an address like s3://bucket/photos")
    if here == Path.home() or here in Path.home().parents or here in (Path.cwd(), *Path.cwd().parents):
        raise MpaError(f"{what}: all of {folder} would travel: put the files into a folder of their own, and name that")
    size, linked = measure(here)
    if linked is not None:
        raise MpaError(
            f"{what}: {linked} is a link, which does not travel: copy what it stands for (cp -rL FOLDER COPY), and "
            "name the copy"
        )
    if provider == "sky" and (lacking := ignored(here)):
        raise MpaError(
            f"{what}: sky would leave out {len(lacking)} things that git ignores in {folder}, {lacking[0]} among them: "
            f"put an empty file {SKY_IGNORE} there"
        )
    if size > MOST_BYTES:
        raise MpaError(
            f"{what}: {folder} has {size / 1e9:.0f} GB, and would travel with each job: copy it into a bucket once "
            f"({COPY['s3'].format(folder, 's3://bucket/' + what)}) and name that address"
        )
    return Mount(what, str(here), target, size)


def _reachable(teacher: str) -> None:
    """MpaError where the teacher is a server that only this machine reaches."""
    if not is_server(teacher):
        return
    url = parse(teacher).base_url
    host = urlsplit(url).hostname or ""
    try:
        near = ip_address(host).is_private
    except ValueError:
        near = host == "localhost" or host.endswith((".local", ".localhost"))
    if near:
        raise MpaError(f"a job elsewhere does not reach the teacher at {url}: give its public https address")
