"""The bundle: one folder with everything that a device needs to answer a run's questions, and the hash of all of it.

manifest.json names each file with its sha256; SHA256SUMS says the same for `sha256sum -c`, and its own hash names the
whole. Accepted answers stay at home. The same inputs make the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, ValidationError

from mpa_edge.artifact import ARTIFACT, read_artifact
from mpa_edge.bench.device.protocol import ORDER, JobOrder, Step, to_json
from mpa_edge.bench.device.runner import QUESTIONS
from mpa_edge.bench.device.worker import pixels_mark
from mpa_edge.bench.host.device_package import light_files
from mpa_edge.config.library import root
from mpa_edge.config.target import Target
from mpa_edge.errors import MpaError
from mpa_edge.images.folder import MAX_PIXELS, READ_SUFFIXES, open_image
from mpa_edge.images.parquet import is_packed, packed_bytes
from mpa_edge.runs.files import atomic_write, disk_errors, make_folder, read_json, sha256_file, write_json
from mpa_edge.runs.manifest import MANIFEST
from mpa_edge.types import Drop, Record

SUMS, MODELS, IMAGES, LIBRARY = "SHA256SUMS", "models", "images", "lib"
HALF_SUFFIX = ".half"
SHORT_DIGITS = 12
# what a runtime reads beside artifact.json and the weights
TOKENIZER_FILES = ("tokenizer.json",)


class Question(Record):
    """One question as the device gets it: without its answers."""

    id: str
    """Of the sample."""
    image: str
    """Path inside the folder of images."""
    prompt: str
    """The user's turn, with what the run puts behind each question (`tasks.answer_prompt`)."""
    max_new_tokens: int = Field(16, ge=1)
    """Longest answer."""


class BundleFile(Record):
    """One file."""

    sha256: str
    """Of its content."""
    bytes: int
    """Its size."""


class BundleManifest(Record):
    """manifest.json."""

    schema_version: Literal[1] = 1
    """Of this document."""
    target: str
    """Name of the target."""
    variants: dict[str, str]
    """artifact, and base where there is one -> folder inside the bundle."""
    n_questions: int
    """Lines of questions.jsonl."""
    files: dict[str, BundleFile]
    """Path inside the bundle -> file, manifest.json and SHA256SUMS left out."""
    sha256: str
    """Of the whole: of SHA256SUMS, which follows from `files`."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on this machine."""

    folder: Path
    """Where it lies."""
    manifest: BundleManifest
    """What is in it."""

    @property
    def sha256(self) -> str:
        """Of the whole."""
        return self.manifest.sha256

    @property
    def variants(self) -> dict[str, str]:
        """Key of a model -> its folder inside the bundle."""
        return self.manifest.variants

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.manifest.files.values())


def make_bundle(
    *,
    folder: Path,
    target: Target,
    artifact: Path,
    base: Path | None,
    questions: Sequence[Question],
    images: Path,
    max_pixels: int = MAX_PIXELS,
    named_by_hash: bool = False,
    order: JobOrder | None = None,
) -> Bundle:
    """Make a bundle at `folder`, or inside it under the first digits of its hash; one that is there already stays.

    `order`: what a job asks that has no order of its own; None: each question once to each model.

    `images` is the folder of the questions' pictures; one with more than `max_pixels` is refused, as the run does it.
    MpaError where an export or a picture cannot be used, the disk is full, or something else lies at `folder`.
    """
    with half_made(folder / "bundle" if named_by_hash else folder) as half:
        models = {"artifact": artifact} | ({"base": base} if base else {})
        variants = {name: _add_model(half, name, source) for name, source in models.items()}
        _add_questions(half, questions, images, max_pixels)
        _add_code(half)
        asked = order or _plain_order(target, variants, questions)
        (half / ORDER).write_text(to_json(asked), encoding="utf-8")
        manifest = _manifest(half, target.name, variants, len(questions))
        (half / SUMS).write_bytes(sums(manifest.files))
        write_json(half / MANIFEST, manifest)
        place = folder / manifest.sha256[:SHORT_DIGITS] if named_by_hash else folder
        _move(half, place, manifest)
    return Bundle(place, manifest)


def read_bundle(folder: Path) -> Bundle:
    """A bundle whose every file is what its manifest says. MpaError where it is none, or is damaged."""
    try:
        manifest = BundleManifest.model_validate(read_json(folder / MANIFEST))
    except ValidationError as error:
        raise MpaError(f"{folder} is no bundle: make one with mpa-edge bundle RUN") from error
    for name, file in manifest.files.items():
        path = folder / name
        inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        if not inside or not path.is_file() or sha256_file(path) != file.sha256:
            raise MpaError(f"bundle {folder}: {name} is missing or damaged: make it again with mpa-edge bundle RUN")
    if whole(manifest.files) != manifest.sha256:
        raise MpaError(f"bundle {folder}: its manifest was changed: make it again with mpa-edge bundle RUN")
    return Bundle(folder, manifest)


def pack(bundle: Bundle, out: Path) -> None:
    """A tar file of a bundle for people who carry it by hand; the same bundle gives the same bytes."""
    top = f"mpa-edge-{bundle.sha256[:SHORT_DIGITS]}"
    names = sorted([*bundle.manifest.files, MANIFEST, SUMS])
    with (
        atomic_write(out, bundle.bytes) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name in names:
            path = bundle.folder / name
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as content:
                tar.addfile(entry, content)


def sums(files: Mapping[str, BundleFile]) -> bytes:
    """SHA256SUMS, as sha256sum writes it, sorted by path."""
    return "".join(f"{file.sha256}  {name}\n" for name, file in sorted(files.items())).encode()


def whole(files: Mapping[str, BundleFile]) -> str:
    """The hash of a bundle: that of its SHA256SUMS."""
    return hashlib.sha256(sums(files)).hexdigest()


# --- a folder that is whole or not there ------------------------------------------------------------------------------


@contextmanager
def half_made(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to work in; whatever is left of it goes, and so does what killed processes left."""
    make_folder(folder.parent)
    for left in folder.parent.glob(f".*{HALF_SUFFIX}"):
        if not Path(f"/proc/{left.name.split('.')[-2]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    half = folder.parent / f".{folder.name}.{os.getpid()}{HALF_SUFFIX}"
    shutil.rmtree(half, ignore_errors=True)
    try:
        with disk_errors(folder.parent, 0):
            half.mkdir()
            yield half
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _move(half: Path, place: Path, manifest: BundleManifest) -> None:
    """Give a finished folder its name, unless the same lies there already and is whole."""
    if place.is_dir() and any(place.iterdir()):
        if not (place / SUMS).is_file():
            raise MpaError(f"{place} holds something that is no bundle: choose another --out")
        try:
            if read_bundle(place).manifest == manifest:
                return
        except MpaError:
            pass  # damaged: it is replaced
        old = half.with_name(f"{half.name.removesuffix(HALF_SUFFIX)}-old.{os.getpid()}{HALF_SUFFIX}")
        os.replace(place, old)
        os.replace(half, place)
        shutil.rmtree(old)
        return
    os.replace(half, place)


# --- what goes in -----------------------------------------------------------------------------------------------------


def _add_model(half: Path, name: str, source: Path) -> str:
    """The files that a runtime reads, as hard links where the file system can: they are never written to."""
    artifact = read_artifact(source)
    inside = f"{MODELS}/{name}"
    small = [ARTIFACT, *(file for file in TOKENIZER_FILES if (source / file).is_file())]
    for file in dict.fromkeys([*small, *weight_files(source, artifact.files.values())]):
        to = half / inside / file
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / file, to)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(source / file, to)
    return inside


def weight_files(source: Path, names: Iterable[str]) -> list[str]:
    """Named files and those beside them that hold their weights (NAME_data, NAME_data_1, NAME.data)."""
    found: list[str] = []
    for name in names:
        path = source / name
        beside = [*path.parent.glob(f"{path.name}_data*"), *path.parent.glob(f"{path.name}.data*")]
        found += [file.relative_to(source).as_posix() for file in [path, *sorted(beside)]]
    return found


def _add_questions(half: Path, questions: Sequence[Question], images: Path, max_pixels: int) -> None:
    """questions.jsonl, and each picture once, byte for byte, under a name made from its content."""
    (half / IMAGES).mkdir()
    seen: dict[str, dict[str, str]] = {}
    rows = []
    for question in questions:
        if question.image not in seen:
            seen[question.image] = _add_picture(half, images / question.image, max_pixels)
        rows.append(question.model_dump() | seen[question.image])
    text = "".join(json.dumps(row, ensure_ascii=True, sort_keys=True) + "\n" for row in rows)
    (half / QUESTIONS).write_text(text, encoding="utf-8")


def _add_picture(half: Path, source: Path, max_pixels: int) -> dict[str, str]:
    """Its place in the bundle, and what tells whether the device decodes it to the same pixels."""
    opened = open_image(source, max_pixels)
    if isinstance(opened, Drop):
        raise MpaError(f"{source}: {opened.reason}; mend the image or remove its questions")
    data = packed_bytes(source) if is_packed(source) else source.read_bytes()
    if isinstance(data, Drop):
        raise MpaError(f"{source}: {data.reason}; mend the image or remove its questions")
    suffix = source.suffix.lower() if source.suffix.lower() in READ_SUFFIXES else ""
    name = f"{IMAGES}/{hashlib.sha256(data).hexdigest()[:16]}{suffix}"
    (half / name).write_bytes(data)
    return {"image": name, "pixels": pixels_mark(opened)}


def _add_code(half: Path) -> None:
    """The light half of mpa_edge, and the scripts that start it."""
    for name, source in light_files().items():
        to = half / LIBRARY / name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)
    for source in sorted((root() / "export" / "runners").iterdir()):
        if source.is_file() and not source.name.startswith("."):
            shutil.copyfile(source, half / source.name)


def _plain_order(target: Target, variants: dict[str, str], questions: Sequence[Question]) -> JobOrder:
    """For people without a host: each question once to each model."""
    steps = tuple(Step(variant, question.id) for variant in variants for question in questions)
    return JobOrder(variants, steps, threads=target.cpu.threads, cores=target.cpu.cores)


def _manifest(half: Path, target: str, variants: dict[str, str], n_questions: int) -> BundleManifest:
    paths = sorted(path for path in half.rglob("*") if path.is_file())
    files = {
        path.relative_to(half).as_posix(): BundleFile(sha256=sha256_file(path), bytes=path.stat().st_size)
        for path in paths
    }
    return BundleManifest(target=target, variants=variants, n_questions=n_questions, files=files, sha256=whole(files))
