"""The bundle: one folder with everything that a device needs to answer a run's questions, and the hash of all of it.

manifest.json lists each file with its sha256; SHA256SUMS is the same for `sha256sum -c`, and its own hash identifies
the bundle. Reference answers stay here. The same inputs make the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from mpa_edge.artifact import ARTIFACT, read_artifact
from mpa_edge.bench.device.protocol import ORDER, QUESTIONS, JobOrder, to_json
from mpa_edge.bench.device.worker import pixel_hash
from mpa_edge.config.library import root
from mpa_edge.errors import MpaError
from mpa_edge.images.folder import MAX_PIXELS, READ_SUFFIXES, open_image
from mpa_edge.images.parquet import is_parquet_row, parquet_row_bytes
from mpa_edge.runs.files import (
    atomic_write,
    disk_errors,
    link_or_copy,
    make_folder,
    sha256_file,
    write_bytes,
    write_json,
)
from mpa_edge.runs.manifest import MANIFEST
from mpa_edge.runs.paths import copy, inside, move, new_file, remove
from mpa_edge.runs.wheel import build_zip, package_files
from mpa_edge.types import Drop, Inside, Record

SUMS, IMAGES, CODE = "SHA256SUMS", "images", "mpa_edge.zip"
HALF_SUFFIX = ".half"
SHORT_DIGITS = 12
# what a runtime reads besides artifact.json and the weights
TOKENIZER_FILES = ("tokenizer.json",)
# what the runner and the runtimes import on the device
DEVICE_CODE = (
    *("__init__.py", "artifact.py", "errors.py", "types.py", "bench/__init__.py", "bench/device/*.py"),
    *(f"config/{name}.py" for name in ["__init__", "accelerator", "llama_cpp", "recipe", "scheme", "section", "task"]),
    *("images/*.py", "runs/__init__.py", "runs/files.py", "runs/paths.py", "runs/network.py"),
    *("vlm/*.py", "vlm/shared/*.py", "vlm/pixels/*.py", "vlm/llama_cpp/*.py", "vlm/onnxruntime/*.py"),
    *("vlm/openai/__init__.py", "vlm/openai/reference.py", "vlm/transformers/__init__.py", "vlm/transformers/files.py"),
)


class Question(Record):
    """One question as it is sent to the device, without its accepted answers."""

    id: str
    """Id of the sample."""
    image: str
    """Path inside the folder of images."""
    prompt: str
    """The user's turn, including what the run appends to each question (`tasks.answer_prompt`)."""
    max_new_tokens: int = Field(16, ge=1)
    """Longest answer."""


class BundleFile(Record):
    """One file of a bundle."""

    sha256: str
    """Hash of its content."""
    bytes: int
    """Its size."""


class BundleManifest(Record):
    """manifest.json."""

    schema_version: Literal[1] = 1
    """Of this document."""
    variants: dict[str, Inside]
    """artifact, and base where there is one -> folder inside the bundle."""
    files: dict[Inside, BundleFile]
    """Path inside the bundle -> file, without manifest.json and SHA256SUMS."""
    sha256: str
    """Hash of SHA256SUMS, which identifies the bundle."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on this machine."""

    folder: Path
    """Where it is."""
    manifest: BundleManifest
    """Its manifest."""

    @property
    def sha256(self) -> str:
        """Hash that identifies the bundle."""
        return self.manifest.sha256

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.manifest.files.values())

    @property
    def artifact_bytes(self) -> int:
        """Size of the exported model."""
        inside = self.manifest.variants["artifact"] + "/"
        return sum(file.bytes for name, file in self.manifest.files.items() if name.startswith(inside))


def make_bundle(
    *,
    folder: Path,
    artifact: Path,
    base: Path | None,
    questions: Sequence[Question],
    images: Path,
    order: JobOrder,
    max_pixels: int = MAX_PIXELS,
    named_by_hash: bool = False,
) -> Bundle:
    """Make a bundle at `folder`, or inside it under the first digits of its hash, in place of an older one.

    artifact and base: exported models. images: folder of the questions' images; one with more than
    `max_pixels` is refused, as by the run. order: what a job without an order of its own asks; it names the folders of
    the models inside.
    MpaError where an export or an image cannot be used, the disk is full, or something else is at `folder`.
    """
    folder = folder.resolve() if folder.is_symlink() else folder  # as the user named it
    with half_made(folder / "bundle" if named_by_hash else folder) as half:
        _add_model(half / order.variants["artifact"], artifact)
        if base:
            _add_model(half / order.variants["base"], base)
        _add_questions(half, questions, images, max_pixels)
        write_bytes(half / CODE, build_zip(package_files(*DEVICE_CODE)))
        for source in sorted((root() / "export" / "runners").glob("[!.]*.*")):
            copy(source, half / source.name)
        write_bytes(half / ORDER, to_json(order).encode())
        paths = sorted(path for path in half.rglob("*") if path.is_file())
        files = {
            path.relative_to(half).as_posix(): BundleFile(sha256=sha256_file(path), bytes=path.stat().st_size)
            for path in paths
        }
        # in the format of sha256sum
        sums = "".join(f"{file.sha256}  {name}\n" for name, file in sorted(files.items())).encode()
        manifest = BundleManifest(variants=order.variants, files=files, sha256=hashlib.sha256(sums).hexdigest())
        write_bytes(half / SUMS, sums)
        write_json(half / MANIFEST, manifest)
        place = folder / manifest.sha256[:SHORT_DIGITS] if named_by_hash else folder
        if place.is_dir() and any(place.iterdir()):
            if not _is_bundle(place):
                raise MpaError(f"{place} contains something other than a bundle: choose another --out")
            # if this run is killed in between, the next one removes what has such a name
            old = half.with_name(f"{half.name.removesuffix(HALF_SUFFIX)}-old.{os.getpid()}{HALF_SUFFIX}")
            move(place, old)
            move(half, place)
            remove(old)
        else:
            move(half, place)
    return Bundle(place, manifest)


def _is_bundle(folder: Path) -> bool:
    """Whether a folder holds nothing but a bundle: then it may be replaced."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return False
    names = {line.partition("  ")[2] for line in lines} | {MANIFEST, SUMS}
    return CODE in names and names >= {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def pack(bundle: Bundle, out: Path) -> None:
    """A tar file of a bundle, for a device without a connection; the same bundle gives the same bytes."""
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


# --- a folder that is complete or not there ---------------------------------------------------------------------------


@contextmanager
def half_made(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, removed in the end; those of killed processes are removed as well."""
    make_folder(folder.parent)
    for left in folder.parent.glob(f".*{HALF_SUFFIX}"):
        owner = re.fullmatch(rf"\.{re.escape(folder.name)}\.(?:\d+-old\.)?(\d+){re.escape(HALF_SUFFIX)}", left.name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            remove(left, quietly=True)
    half = folder.parent / f".{folder.name}.{os.getpid()}{HALF_SUFFIX}"
    remove(half)
    try:
        with disk_errors(folder.parent, 0):
            half.mkdir()
            yield half
    finally:
        remove(half, quietly=True)


# --- contents ---------------------------------------------------------------------------------------------------------


def _add_model(folder: Path, source: Path) -> None:
    """The files that a runtime reads, as hard links where the file system can: they are never written to."""
    artifact = read_artifact(source)
    small = [ARTIFACT, *(file for file in TOKENIZER_FILES if (source / file).is_file())]
    for file in dict.fromkeys([*small, *weight_files(source, artifact.files.values())]):
        to = folder / file
        make_folder(to.parent)
        link_or_copy(inside(source, file), to)


def weight_files(source: Path, names: Iterable[str]) -> list[str]:
    """Named files and the files beside them with their weights (NAME_data, NAME_data_1, NAME.data)."""
    found: list[str] = []
    for name in names:
        path = source / name
        beside = [*path.parent.glob(f"{path.name}_data*"), *path.parent.glob(f"{path.name}.data*")]
        found += [file.relative_to(source).as_posix() for file in [path, *sorted(beside)]]
    return found


def _add_questions(half: Path, questions: Sequence[Question], images: Path, max_pixels: int) -> None:
    """questions.jsonl, and each image once, byte for byte, under a name made from its content."""
    make_folder(half / IMAGES)
    added: dict[str, dict[str, str]] = {}
    rows = []
    for question in questions:
        if question.image not in added:
            source = images / question.image
            opened = open_image(source, max_pixels)
            if isinstance(opened, Drop):
                raise MpaError(f"{source}: {opened.reason}; fix the image or remove its questions")
            data = parquet_row_bytes(source) if is_parquet_row(source) else source.read_bytes()
            if isinstance(data, Drop):
                raise MpaError(f"{source}: {data.reason}; fix the image or remove its questions")
            suffix = source.suffix.lower() if source.suffix.lower() in READ_SUFFIXES else ""
            name = f"{IMAGES}/{hashlib.sha256(data).hexdigest()[:16]}{suffix}"
            with new_file(half / name) as file:
                file.write(data)
            # with the hash that tells whether the device decodes it to the same pixels
            added[question.image] = {"image": name, "pixels": pixel_hash(opened)}
        rows.append(question.model_dump() | added[question.image])
    text = "".join(json.dumps(row, ensure_ascii=True, sort_keys=True) + "\n" for row in rows)
    write_bytes(half / QUESTIONS, text.encode())
