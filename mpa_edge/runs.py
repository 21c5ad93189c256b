"""The run folder: the only memory between stages. Atomic files, parquet parts, a manifest written last, one lock.

A stage folder is done when its `manifest.json` is there, names the same inputs, and every output still has its hash.
Anything else is redone, but only what is missing: `prepare` decides what may stay.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mpa_edge import __version__
from mpa_edge.errors import MpaError
from mpa_edge.watchers import tell

MANIFEST = "manifest.json"
INPUTS = ".inputs.json"
CLOCK = ".seconds.json"
LOCK = ".lock"
TEMP_SUFFIX = ".tmp"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MB = 1_000_000
HASHED_AT_ONCE = 2**18
ORPHAN_WAIT_S = 5.0
EXPORTS = "exports"
# what a run folder is made of; whatever reads a run knows no more of the stages than this
RECIPE_FILE = "recipe.yaml"
RUN_FILE = "run.json"
RENDERED = "images"
SEEN = ".images.jsonl"
FOLDERS = {
    "annotate": "1-annotate",
    "identify": "2-identify",
    "level": "3-level",
    "merge": "merged",
    "evaluate": "evaluate",
}


class Manifest(BaseModel):
    """What made a stage folder. Written last: a folder without one is not finished."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    """Of this document."""
    stage: str
    """annotate, identify, level, merge or evaluate."""
    inputs: dict[str, str]
    """Everything the result depends on: name -> sha256."""
    outputs: dict[str, str]
    """Every file of the folder: path inside it -> sha256."""
    config_sha256: str
    """Hash of the part of the recipe that the stage read."""
    versions: dict[str, str]
    """Python, mpa-edge and the libraries that did the work."""
    seed: int
    """Seed of the stage."""
    seconds: float
    """Wall seconds, all attempts together."""
    counts: dict[str, int]
    """Rows made, dropped, and whatever else the stage counts."""
    used: dict[str, str] = {}
    """What did the work: device and numbers, whatever `auto` stood for; empty where no model ran in this process."""


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return sha256_stream(file)


def sha256_stream(file: IO[bytes]) -> str:
    """Hex digest of what is left of a stream. Devices run this with Python 3.10, which has no hashlib.file_digest."""
    digest = hashlib.sha256()
    while part := file.read(HASHED_AT_ONCE):
        digest.update(part)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of a value, independent of key order. Pydantic models are taken by their fields."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def sha256_list(values: Iterable[Any]) -> str:
    """The same digest as `sha256_json` of a list, without the list in memory.

    >>> sha256_list(iter([["a", 1], True])) == sha256_json([["a", 1], True])
    True
    """
    digest, between = hashlib.sha256(b"["), b""
    for value in values:
        digest.update(between + json.dumps(value, sort_keys=True, ensure_ascii=True).encode())
        between = b", "
    digest.update(b"]")
    return digest.hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Python, mpa-edge and the named distributions that are installed."""
    found = {"python": platform.python_version(), "mpa-edge": __version__}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


# --- space and memory -------------------------------------------------------------------------------------------------


def free_bytes(folder: Path) -> int:
    """Free space for this user on the disk of a folder that need not exist yet."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def require_free(folder: Path, need_bytes: int) -> None:
    """Raise MpaError where the disk cannot take `need_bytes` more."""
    if free_bytes(folder) < need_bytes:
        raise disk_full(folder, need_bytes)


def disk_full(folder: Path, need_bytes: int) -> MpaError:
    """The error for a write that did not fit."""
    short = need_bytes
    with suppress(OSError):
        short = max(need_bytes - free_bytes(folder), min(need_bytes, MB))
    return MpaError(
        f"disk full at {folder}: free {max(1, -(-short // MB))} MB and run the same command again; nothing is lost"
    )


@contextmanager
def disk_errors(folder: Path, need_bytes: int) -> Iterator[None]:
    """Turn a full disk (or a quota, or a file size limit) inside the block into an MpaError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(folder, need_bytes) from error
        raise


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far; on Linux with what was swapped out, 0 where nobody says."""
    with suppress(OSError):
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        kib = {name: int(lines.get(name, "0").split()[0]) for name in ("VmHWM", "VmRSS", "VmSwap")}
        return 1024 * max(kib["VmHWM"], kib["VmRSS"] + kib["VmSwap"])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak


# --- atomic files -----------------------------------------------------------------------------------------------------


def make_folder(folder: Path) -> Path:
    """Create a folder with its parents. Raises MpaError where that is not possible."""
    try:
        with disk_errors(folder, MB):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MpaError(f"cannot make folder {folder} ({error.strerror}): choose another --out") from error
    return folder


def fsync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path, need_bytes: int = MB) -> Iterator[IO[bytes]]:
    """A binary file that gets its name only when it is complete and on the disk; on any error nothing is left.

    `need_bytes` is what the disk-full message asks for.
    """
    temp = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}{TEMP_SUFFIX}")
    try:
        with disk_errors(path.parent, need_bytes):
            with temp.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, path)
            fsync_folder(path.parent)
    finally:
        temp.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_write(path, len(data)) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document (or a pydantic model) atomically, with sorted keys and a final newline."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    write_bytes(path, (json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """A JSON document; None where the file is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def sweep(folder: Path) -> int:
    """Remove the temporary files that a killed process left anywhere below; returns how many."""
    leftovers = list(folder.rglob(f".*{TEMP_SUFFIX}"))
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


# --- one process in one run folder ------------------------------------------------------------------------------------

_held: dict[Path, int] = {}


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; the same process may enter again. Leftover temporary files are swept.

    Raises MpaError naming the process that holds it.
    """
    key = make_folder(folder).resolve()
    if key in _held:
        yield
        return
    with disk_errors(folder, MB):
        descriptor = os.open(key / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(descriptor, folder)
        _held[key] = descriptor
        sweep(key)
        yield
    finally:
        _held.pop(key, None)
        os.close(descriptor)


def _acquire(descriptor: int, folder: Path) -> None:
    """Take the flock and write our pid; children of a killed process get a moment to end."""
    deadline = time.monotonic() + ORPHAN_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            if _alive(owner) or time.monotonic() > deadline:
                raise MpaError(
                    f"{folder} is in use by process {owner}: wait for it, stop it, or choose another --out"
                ) from error
            time.sleep(0.1)
    with disk_errors(folder, MB):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _alive(pid: str) -> bool:
    return not pid.isdigit() or Path(f"/proc/{pid}").exists() or not Path("/proc/self").exists()


# --- stage folders ----------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a stage folder; None where it is missing or damaged."""
    try:
        return Manifest.model_validate(read_json(folder / MANIFEST))
    except ValidationError:
        return None


def damaged(folder: Path, manifest: Manifest) -> list[str]:
    """Outputs that are missing or are not what they were."""
    files = manifest.outputs.items()
    return [name for name, digest in files if not (folder / name).is_file() or sha256_file(folder / name) != digest]


def is_done(folder: Path, inputs: Mapping[str, str]) -> bool:
    """Present manifest, unchanged inputs, unchanged outputs: the stage can be skipped."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.inputs == dict(inputs) and not damaged(folder, manifest)


def prepare(folder: Path, inputs: Mapping[str, str], fresh: bool = False) -> bool:
    """Make a stage folder ready for work; True where what is already there may be built upon.

    With other inputs (or `fresh`) the old content goes; with the same ones only damaged files and the manifest do.
    """
    make_folder(folder)
    sweep(folder)
    same = not fresh and read_json(folder / INPUTS) == dict(inputs)
    manifest = read_manifest(folder)
    for name in damaged(folder, manifest) if same and manifest else ():
        (folder / name).unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    if not same:
        clear(folder)
        write_json(folder / INPUTS, dict(inputs))
    return same


def clear(folder: Path) -> None:
    """Remove everything inside a folder; the manifest goes first, so that a kill in between cannot leave a lie."""
    for name in (MANIFEST, INPUTS):
        (folder / name).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def output_files(folder: Path) -> list[Path]:
    """Every visible file below a stage folder but the manifest, sorted."""
    found = ((path, path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    seen = (path for path, inside in found if not any(part.startswith(".") for part in inside.parts))
    return sorted(path for path in seen if path.name != MANIFEST)


def finish(
    folder: Path,
    stage: str,
    *,
    inputs: Mapping[str, str],
    config: Any,
    seed: int,
    counts: Mapping[str, int],
    packages: Sequence[str] = (),
    files: Sequence[Path] | None = None,
    used: Mapping[str, str] | None = None,
) -> Manifest:
    """Hash the outputs (all files of the folder unless `files` are named) and write the manifest: the stage is done."""
    paths = output_files(folder) if files is None else files
    manifest = Manifest(
        stage=stage,
        inputs=dict(inputs),
        outputs={path.relative_to(folder).as_posix(): sha256_file(path) for path in paths},
        config_sha256=sha256_json(config),
        versions=versions(*packages),
        seed=seed,
        seconds=round(seconds_so_far(folder), 3),
        counts=dict(counts),
        used=dict(used or {}),
    )
    write_json(folder / MANIFEST, manifest)
    return manifest


def seconds_so_far(folder: Path) -> float:
    """Wall seconds of all attempts at a stage, as last written by its clock."""
    stored = read_json(folder / CLOCK)
    return float(stored["seconds"]) if isinstance(stored, dict) and "seconds" in stored else 0.0


class StageClock:
    """Adds up the wall seconds of a stage over all attempts. Call `tick` after each shard: a kill loses no more."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last = time.monotonic()

    def tick(self) -> float:
        """Write the sum so far and return it, seconds."""
        now = time.monotonic()
        total, self._last = seconds_so_far(self._folder) + now - self._last, now
        write_json(self._folder / CLOCK, {"seconds": total})
        tell(self._folder)
        return total
