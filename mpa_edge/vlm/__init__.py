"""Everything that answers a question about an image, behind one protocol (`mpa_edge.types.VLM`)."""

from __future__ import annotations

import hashlib
import importlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.artifact import is_artifact, read_artifact
from mpa_edge.config.accelerator import CPU_ONLY
from mpa_edge.errors import MpaError, missing_package
from mpa_edge.runs.files import sha256_file, sha256_json
from mpa_edge.vlm.openai.reference import is_server, parse

if TYPE_CHECKING:
    from mpa_edge.config.llama_cpp import LlamaCpp
    from mpa_edge.config.recipe import TeacherServerConfig
    from mpa_edge.types import VLM

NURSERY_PREFIX = "nursery:"
WEIGHTS = Path(__file__).parents[1] / "nursery" / "weights"
HASHED_BYTES, SAMPLE_BYTES = 64_000_000, 1_000_000
MODEL_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model")
EXPORT_SUFFIXES = (".onnx", ".onnx_data", ".gguf")
RUNTIMES = {
    "onnx": ("mpa_edge.vlm.onnxruntime.model", "OnnxVLM"),
    "gguf": ("mpa_edge.vlm.llama_cpp.model", "LlamaCppVLM"),
    "hybrid": ("mpa_edge.vlm.hybrid", "HybridVLM"),
}
"""Format of an export -> module and class that run it."""


def resolve(reference: str) -> str:
    """A recipe's model reference as the loaders take it: a folder, a hub id, or an unchanged reference to a server.

    `nursery:teacher` and `nursery:student` are the built-in models. Raises MpaError for a folder without a model.
    """
    if is_server(reference):
        parse(reference)
        return reference
    built_in = ", ".join(f"{NURSERY_PREFIX}{path.name}" for path in sorted(WEIGHTS.glob("*/")))
    if reference.startswith(NURSERY_PREFIX):
        folder = WEIGHTS / reference.removeprefix(NURSERY_PREFIX)
        if not (folder / "config.json").is_file():
            raise MpaError(f"no built-in model '{reference}': use {built_in}, a folder, or a hub id OWNER/NAME")
        return str(folder)
    folder = Path(reference).expanduser()
    if folder.exists():
        if not is_artifact(folder):
            from mpa_edge.vlm.transformers.files import require_no_adapter  # not in a bundle for a device

            require_no_adapter(folder)
        if not is_artifact(folder) and not (folder / "config.json").is_file():
            raise MpaError(f"'{reference}' has no config.json: name a folder that holds a transformers checkpoint")
        return str(folder)
    if reference.startswith(("/", "./", "../", "~")) or reference.count("/") != 1:
        raise MpaError(f"no model '{reference}': name {built_in}, a folder, or a hub id OWNER/NAME")
    return reference


def fingerprint(reference: str) -> str:
    """Identity of a model: a hash of its files, of its hub id, or of a server's address and its model's name.

    A server need not be running: a finished stage stays finished after a rented GPU is returned. Of a file above 64 MB,
    64 samples of 1 MB are read: training changes every weight, and hashing 15 GB would take a minute.
    """
    if is_server(reference):
        server = parse(reference)
        return sha256_json({"server": server.base_url, "model": server.model})
    folder = Path(resolve(reference))
    if not folder.is_dir():
        return sha256_json({"hub": reference})
    suffixes = MODEL_SUFFIXES + (EXPORT_SUFFIXES if is_artifact(folder) else ())
    hashes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in suffixes):
        try:
            hashes[path.relative_to(folder).as_posix()] = _sampled_hash(path)
        except OSError as error:
            raise MpaError(f"'{path}' cannot be read ({error.strerror}): check its permissions") from error
    return sha256_json(hashes)


def _sampled_hash(path: Path) -> str:
    size_bytes = path.stat().st_size
    if size_bytes <= HASHED_BYTES:
        return sha256_file(path)
    n, digest = HASHED_BYTES // SAMPLE_BYTES, hashlib.sha256(str(size_bytes).encode())
    with path.open("rb") as file:
        for i in range(n):
            file.seek(i * (size_bytes - SAMPLE_BYTES) // (n - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def load(
    reference: str,
    *,
    name: str,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = 256,
    server: TeacherServerConfig | None = None,
    spent_before: float = 0.0,
    accelerators: Sequence[str] = CPU_ONLY,
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    profile: Path | None = None,
    llama_cpp: LlamaCpp | None = None,
) -> VLM:
    """The model behind a reference, ready to answer. torch is imported only here, and only for a checkpoint.

    `batch_size` is the largest batch. Exports ignore `device` and `batch_size`: they answer one request at a time, on
    the first of `accelerators` that is here. `provider_options`, `llama_cpp`: see `config.target`; `profile`: a folder
    for temporary files, where `profile_of` of an export shall be called. `server` and `spent_before` are for a model
    behind a server. Raises MpaError where a package, the model or the device is missing, or the checkpoint is damaged.
    """
    is_export = not is_server(reference) and is_artifact(Path(resolve(reference)))
    if not is_export and tuple(accelerators) != CPU_ONLY:
        raise MpaError(f"an accelerator is for an export, and '{reference}' is none: use --set device=cuda, or omit it")
    if is_server(reference):
        found, client = parse(reference), _imported("mpa_edge.vlm.openai.client", "OpenAIVLM", "openai")
        return client(found.base_url, found.model, name=name, server=server, spent_before=spent_before)
    path = resolve(reference)
    if is_export:
        format_ = read_artifact(Path(path)).format
        runtime = _imported(*RUNTIMES[format_], "onnx")
        own = {} if format_ == "onnx" else {"llama_cpp": llama_cpp}
        return runtime(
            Path(path),
            name=name,
            threads=threads,
            accelerators=accelerators,
            provider_options=provider_options,
            profile=profile,
            **own,
        )
    with interrupts_held():
        checkpoint = _imported("mpa_edge.vlm.transformers.model", "TransformersVLM", "align")
    return checkpoint(path, name=name, device=device, threads=threads, batch_size=batch_size)


def _imported(module: str, name: str, extra: str) -> Any:
    """A class by name. MpaError where a package that it needs is missing; `extra` installs it."""
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise missing_package(str(error.name).partition(".")[0], extra) from error


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C while the block imports torch: KeyboardInterrupt inside torch's C++ code aborts the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt
