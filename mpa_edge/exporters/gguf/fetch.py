"""llama.cpp's own converter, from the source package that the pinned runtime is built from.

So converter and runtime are of the same commit. pip fetches the package through whatever index the user configured and
checks its hash before anything is unpacked; a few MB are kept in the user's cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from mpa_edge.errors import MpaError
from mpa_edge.runs.files import MB, sha256_file, sha256_json
from mpa_edge.runs.user_cache import made_once

VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SDIST_VARIABLE = "MPA_EDGE_LLAMA_CPP_SDIST"
NEEDED_BYTES, SDIST_BYTES = 40 * MB, 120 * MB
PIP_TIMEOUT_S = 900
WANTED = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/gguf/")
FOLDER = f"llama-cpp-{VERSION}-{sha256_json([SDIST_SHA256, *WANTED])[:8]}"
"""Its name in the user's cache: another one where other files are wanted."""
_INSIDE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"


def converter_folder() -> Path:
    """The folder of llama.cpp's converters, fetched on first use. MpaError where it cannot be fetched."""
    return made_once(FOLDER, _unpack_converter, SDIST_BYTES)


def _unpack_converter(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as temp:
        if named := os.environ.get(SDIST_VARIABLE):  # for a machine without network
            archive = Path(named).expanduser()
            if not archive.is_file():
                wanted = f"llama_cpp_python-{VERSION}.tar.gz"
                raise MpaError(f"{SDIST_VARIABLE} names '{named}', which is not a file: name {wanted}")
        else:
            archive = download(Path(temp))
        if sha256_file(archive) != SDIST_SHA256:
            raise MpaError(
                f"'{archive.name}' is not the source package of llama-cpp-python {VERSION}: download it again"
            )
        extract(archive, folder)


def download(folder: Path) -> Path:
    """Let pip fetch the source package into a folder; pip compares the hash before it opens the file."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-binary", "llama-cpp-python", "--require-hashes", "-r", str(requirement)]
    command += ["-d", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
        reason = (errors or lines or ["pip failed"])[-1][:200]
    except subprocess.TimeoutExpired:
        done, reason = None, f"no answer for {PIP_TIMEOUT_S} s"
    found = sorted(folder.glob("llama_cpp_python-*.tar.gz"))
    if done is None or done.returncode or not found:
        raise MpaError(
            f"cannot fetch llama.cpp's converter ({reason}): connect to a package index, or set {SDIST_VARIABLE} "
            f"to a copy of llama_cpp_python-{VERSION}.tar.gz"
        )
    return found[0]


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
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                if source := tar.extractfile(member):
                    with source, (folder / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
    except (tarfile.TarError, EOFError) as error:
        raise MpaError(f"'{archive.name}' is damaged ({error}): download it again") from error
    if not (folder / WANTED[0]).is_file():
        raise MpaError(f"'{archive.name}' holds no converter: download it again")
