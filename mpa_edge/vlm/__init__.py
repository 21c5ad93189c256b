"""Everything that answers a question about an image, behind one protocol (`mpa_edge.types.VLM`)."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.artifact import is_artifact, read_artifact
from mpa_edge.errors import MpaError, missing_package
from mpa_edge.runs.files import sha256_file, sha256_json
from mpa_edge.vlm.openai.reference import is_server, parse
from mpa_edge.vlm.transformers.interrupts import interrupts_held

if TYPE_CHECKING:
    from mpa_edge.config.recipe import TeacherServerConfig
    from mpa_edge.types import VLM

NURSERY_PREFIX = "nursery:"
WEIGHTS = Path(__file__).parents[1] / "nursery" / "weights"
HASHED_BYTES, SAMPLE_BYTES = 64_000_000, 1_000_000
MODEL_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model")
EXPORT_SUFFIXES = (".onnx", ".onnx_data", ".gguf")
# format of an export -> module and class that run it
RUNTIMES = {
    "onnx": ("mpa_edge.vlm.onnxruntime.model", "OnnxVLM"),
    "gguf": ("mpa_edge.vlm.llama_cpp.model", "LlamaCppVLM"),
    "hybrid": ("mpa_edge.vlm.hybrid", "HybridVLM"),
}


def resolve(reference: str) -> str:
    """A model reference of a recipe as what the loaders take: a folder, a hub id, or a server as it stands.

    `nursery:teacher` and `nursery:student` are the built-in models. Raises MpaError for a folder without a model.
    """
    if is_server(reference):
        parse(reference)
        return reference
    if reference.startswith(NURSERY_PREFIX):
        folder = WEIGHTS / reference.removeprefix(NURSERY_PREFIX)
        if not (folder / "config.json").is_file():
            raise MpaError(f"no built-in model '{reference}': use {_built_in()}, a folder, or a hub id OWNER/NAME")
        return str(folder)
    folder = Path(reference).expanduser()
    if folder.exists():
        if not is_artifact(folder) and not (folder / "config.json").is_file():
            raise MpaError(f"'{reference}' has no config.json: name a folder that holds a transformers checkpoint")
        return str(folder)
    if reference.startswith(("/", "./", "../", "~")) or reference.count("/") != 1:
        raise MpaError(f"no model '{reference}': name {_built_in()}, a folder, or a hub id OWNER/NAME")
    return reference


def _built_in() -> str:
    return ", ".join(f"{NURSERY_PREFIX}{path.name}" for path in sorted(WEIGHTS.glob("*/")))


def fingerprint(reference: str) -> str:
    """What makes a model this model: hash of its files, of its hub id, or of a server's address and its model's name.

    A server need not be there for it: a finished stage stays finished when a rented GPU is given back.
    Of a file above 64 MB, 64 samples of 1 MB are read: training moves every weight, and 15 GB would take a minute.
    """
    if is_server(reference):
        server = parse(reference)
        return sha256_json({"server": server.base_url, "model": server.model})
    folder = Path(resolve(reference))
    if not folder.is_dir():
        return sha256_json({"hub": reference})
    suffixes = MODEL_SUFFIXES + (EXPORT_SUFFIXES if is_artifact(folder) else ())
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in suffixes)
    return sha256_json({path.relative_to(folder).as_posix(): _file_mark(path) for path in files})


def _file_mark(path: Path) -> str:
    size_bytes = path.stat().st_size
    if size_bytes <= HASHED_BYTES:
        return sha256_file(path)
    n, mark = HASHED_BYTES // SAMPLE_BYTES, hashlib.sha256(str(size_bytes).encode())
    with path.open("rb") as file:
        for i in range(n):
            file.seek(i * (size_bytes - SAMPLE_BYTES) // (n - 1))
            mark.update(file.read(SAMPLE_BYTES))
    return mark.hexdigest()


def load(
    reference: str,
    *,
    name: str,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = 256,
    server: TeacherServerConfig | None = None,
    spent_before: float = 0.0,
) -> VLM:
    """The model behind a reference, ready to answer. torch is imported here, not before, and not for an export.

    `batch_size` is the largest batch. An exported folder runs on the CPU, one request at a time: `device` and
    `batch_size` do not matter to it. `server` and `spent_before` matter only to a model behind a server.
    Raises MpaError where a package, the model or the device is missing, or the checkpoint is damaged.
    """
    if is_server(reference):
        return _load_server(reference, name, server, spent_before)
    if is_artifact(Path(resolve(reference))):
        return _load_export(Path(resolve(reference)), name, threads)
    try:
        with interrupts_held():
            from mpa_edge.vlm.transformers.model import TransformersVLM
    except ModuleNotFoundError as error:
        raise missing_package(str(error.name).partition(".")[0], "align") from error
    return TransformersVLM(resolve(reference), name=name, device=device, threads=threads, batch_size=batch_size)


def _load_server(reference: str, name: str, config: TeacherServerConfig | None, spent_before: float) -> VLM:
    """A model behind a server, as soon as the server answers."""
    try:
        from mpa_edge.vlm.openai.client import OpenAIVLM
    except ModuleNotFoundError as error:
        raise missing_package("openai", "openai") from error
    server = parse(reference)
    return OpenAIVLM(server.base_url, server.model, name=name, server=config, spent_before=spent_before)


def _load_export(folder: Path, name: str, threads: int | None) -> VLM:
    """An exported model in the runtime of its format."""
    module, runtime = RUNTIMES[read_artifact(folder).format]
    try:
        model: Any = getattr(importlib.import_module(module), runtime)
    except ModuleNotFoundError as error:
        raise missing_package(str(error.name).partition(".")[0], "onnx") from error
    return model(folder, name=name, threads=threads)
