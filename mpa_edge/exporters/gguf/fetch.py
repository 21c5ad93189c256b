"""llama.cpp's own converter, from the source package that the pinned runtime is built from.

Converter and runtime share a commit that way. pip fetches the package through whatever index the user configured and
checks its hash before it unpacks anything; three folders are kept, a few MB, in the user's cache.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpa_edge.errors import MpaError
from mpa_edge.runs.files import MB, disk_errors, make_folder, require_free, sha256_file

VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SDIST_VARIABLE = "MPA_EDGE_LLAMA_CPP_SDIST"
NEEDED_BYTES, SDIST_BYTES = 40 * MB, 120 * MB
PIP_TIMEOUT_S = 900
DONE = ".complete"
WANTED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/")
_INSIDE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"


def converter_folder() -> Path:
    """The folder of `convert_hf_to_gguf.py`, fetched on first use. MpaError where it cannot be had.

    Safe for two processes at once and against a kill in between: the folder gets its name when it is complete.
    """
    folder = cache_folder() / f"llama-cpp-{VERSION}-{SDIST_SHA256[:8]}"
    if (folder / DONE).is_file():
        return folder
    make_folder(folder.parent)
    with _lock(folder.parent / ".llama-cpp.lock"):
        if not (folder / DONE).is_file():
            _install(folder)
    return folder


def cache_folder() -> Path:
    """Where this user's caches are: XDG_CACHE_HOME/mpa-edge, or ~/.cache/mpa-edge."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mpa-edge"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(folder: Path) -> None:
    """Fetch, check, unpack beside the final name, rename. What a killed attempt left is removed first."""
    shutil.rmtree(folder, ignore_errors=True)
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with (
        disk_errors(folder.parent, SDIST_BYTES),
        tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temp,
    ):
        unpacked = Path(temp) / "unpacked"
        extract(_checked(_sdist(Path(temp))), unpacked)
        (unpacked / DONE).touch()
        unpacked.rename(folder)


def _sdist(temp: Path) -> Path:
    """The package's file: named by the user for a machine without network, else downloaded."""
    named = os.environ.get(SDIST_VARIABLE)
    if not named:
        require_free(temp, SDIST_BYTES)
        return download(temp)
    path = Path(named).expanduser()
    if not path.is_file():
        raise MpaError(f"{SDIST_VARIABLE} names '{named}', which is no file: name llama_cpp_python-{VERSION}.tar.gz")
    return path


def _checked(path: Path) -> Path:
    if sha256_file(path) != SDIST_SHA256:
        raise MpaError(f"'{path.name}' is not the source package of llama-cpp-python {VERSION}: download it again")
    return path


def download(folder: Path) -> Path:
    """Let pip fetch the source package into a folder; pip itself compares the hash before it opens the file."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-binary", "llama-cpp-python", "--require-hashes", "-r", str(requirement)]
    try:
        done = subprocess.run(
            [*command, "-d", str(folder)], capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _not_fetched(f"no answer for {PIP_TIMEOUT_S} s") from error
    found = sorted(folder.glob("llama_cpp_python-*.tar.gz"))
    if done.returncode or not found:
        raise _not_fetched(_reason(done.stderr))
    return found[0]


def _reason(stderr: str) -> str:
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in said if line.startswith("ERROR:")]
    return (errors or said or ["pip failed"])[-1][:200]


def _not_fetched(reason: str) -> MpaError:
    return MpaError(
        f"cannot fetch llama.cpp's converter ({reason}): connect to a package index, or set {SDIST_VARIABLE} "
        f"to a copy of llama_cpp_python-{VERSION}.tar.gz"
    )


def extract(archive: Path, folder: Path) -> None:
    """Unpack the converter's files, and nothing else, from the source package. MpaError for an unsafe member.

    Only regular files with plain relative names come out, `NEEDED_BYTES` at most.
    """
    total_bytes = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.removeprefix(_INSIDE)
                if name == member.name or not name.startswith(WANTED) or member.isdir():
                    continue
                total_bytes += member.size
                if not member.isreg() or ".." in Path(name).parts or total_bytes > NEEDED_BYTES:
                    raise MpaError(f"'{archive.name}' holds an unsafe member '{name}': download it again")
                _unpack(tar, member, folder / name)
    except (tarfile.TarError, EOFError) as error:
        raise MpaError(f"'{archive.name}' is damaged ({error}): download it again") from error
    if not (folder / WANTED[0]).is_file():
        raise MpaError(f"'{archive.name}' holds no converter: download it again")


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    if source is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
