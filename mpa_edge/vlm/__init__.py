"""Everything that answers a question about an image, behind one protocol (`mpa_edge.types.VLM`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mpa_edge.errors import MpaError
from mpa_edge.runs import sha256_file, sha256_json

if TYPE_CHECKING:
    from mpa_edge.types import VLM

NURSERY_PREFIX = "nursery:"
WEIGHTS = Path(__file__).parents[1] / "nursery" / "weights"
HASHED_WHOLE_BYTES = 64_000_000
MODEL_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model")


def resolve(reference: str) -> str:
    """A model reference of a recipe as what the loaders take: a folder, or a hub id.

    `nursery:teacher` and `nursery:student` are the built-in models. Raises MpaError for a folder without a model.
    """
    if reference.startswith(NURSERY_PREFIX):
        folder = WEIGHTS / reference.removeprefix(NURSERY_PREFIX)
        if not (folder / "config.json").is_file():
            known = ", ".join(f"{NURSERY_PREFIX}{path.name}" for path in sorted(WEIGHTS.glob("*/")))
            raise MpaError(f"no built-in model '{reference}': use {known or 'a folder or a hub id'}")
        return str(folder)
    folder = Path(reference).expanduser()
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise MpaError(f"'{reference}' has no config.json: name a folder that holds a transformers checkpoint")
        return str(folder)
    if reference.startswith(("/", "./", "../", "~")) or reference.count("/") != 1:
        raise MpaError(f"no model '{reference}': name nursery:teacher, nursery:student, a folder, or a hub id OWNER/NAME")
    return reference


def fingerprint(reference: str) -> str:
    """What makes a model this model: hash of its files (of name and size only above 64 MB), or of its hub id."""
    folder = Path(resolve(reference))
    if not folder.is_dir():
        return sha256_json({"hub": reference})
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in MODEL_SUFFIXES)
    return sha256_json({path.relative_to(folder).as_posix(): _file_mark(path) for path in files})


def _file_mark(path: Path) -> str:
    size_bytes = path.stat().st_size
    return sha256_file(path) if size_bytes <= HASHED_WHOLE_BYTES else f"{size_bytes} bytes"


def load(reference: str, *, name: str, device: str = "auto", threads: int | None = None, batch_size: int = 64) -> VLM:
    """The model behind a reference, ready to answer. torch is imported here, not before."""
    from mpa_edge.vlm.transformers import TransformersVLM

    return TransformersVLM(resolve(reference), name=name, device=device, threads=threads, batch_size=batch_size)
