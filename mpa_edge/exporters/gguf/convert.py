"""One checkpoint into the two files of llama.cpp: the language model, and the vision encoder with its connector."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.fetch import converter_folder
from mpa_edge.exporters.gguf.mmproj import NAMES, write_mmproj
from mpa_edge.exporters.gguf.pre_tokenizer import pre_tokenizer_name
from mpa_edge.exporters.gguf.stage import stage
from mpa_edge.runs.files import TEMP_SUFFIX, disk_errors, fsync_folder, make_folder, read_json
from mpa_edge.runs.isolation import run_isolated

GgufComponent = Literal["language", "mmproj"]
PRECISIONS: dict[GgufComponent, tuple[str, ...]] = {
    "language": ("f32", "f16", "bf16"),
    "mmproj": ("f32", "f16", "bf16", "q8_0"),
}
CONVERT_TIMEOUT_S = 3600
DRIVER = Path(__file__).with_name("driver.py")


def convert(
    checkpoint: Path,
    component: GgufComponent,
    out: Path,
    precision: str = "f16",
    image: dict[str, Any] | None = None,
) -> int:
    """Write one component of a checkpoint as GGUF; returns the peak resident bytes of the process that did it.

    `image` holds the image processor's values to use in place of the checkpoint's (a target's image budget). Other
    precisions of the language model are made from f16 by `quantize_gguf`. The file gets its name when it is complete.
    MpaError with the converter's last word where it refuses.
    """
    if precision not in PRECISIONS[component]:
        known = ", ".join(PRECISIONS[component])
        raise MpaError(f"{component} cannot be converted to {precision} directly: choose {known}, or quantize")
    make_folder(out.parent)
    temp = out.with_name(f".{out.name}.{os.getpid()}{TEMP_SUFFIX}")
    # beside the result, not in /tmp: what a kill leaves there is found again
    folder = out.with_name(f".{out.name}.staged")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with disk_errors(out.parent, _weight_bytes(checkpoint) // 2):
            staged = stage(checkpoint, folder / (checkpoint.resolve().name or "model"), image)
            if component == "mmproj" and read_json(staged / "config.json")["model_type"] in NAMES:
                _, peak_bytes = run_isolated(write_mmproj, staged, temp, precision)
            else:
                peak_bytes = _run_converter(staged, component, temp, precision)
            os.replace(temp, out)
            fsync_folder(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        temp.unlink(missing_ok=True)
    return peak_bytes


def _weight_bytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))


def _run_converter(staged: Path, component: GgufComponent, out: Path, precision: str) -> int:
    pre_tokenizer = pre_tokenizer_name(read_json(staged / "tokenizer.json") or {}) or ""
    command = [sys.executable, "-P", str(DRIVER), str(os.getpid()), str(converter_folder()), pre_tokenizer]
    command += [str(staged), "--outfile", str(out), "--outtype", precision]
    command += ["--mmproj"] if component == "mmproj" else []
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("NO_LOCAL_GGUF", None)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=CONVERT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(component, f"no end after {CONVERT_TIMEOUT_S} s") from error
    if done.returncode == errno.ENOSPC:
        raise OSError(errno.ENOSPC, "no space left")
    if done.returncode or not out.is_file():
        raise _refused(component, last_words(done.stderr) or f"exit code {done.returncode}")
    return int(done.stdout.split()[-1])


def _refused(component: GgufComponent, reason: str) -> MpaError:
    return MpaError(f"llama.cpp's converter refused the {component} part ({reason}): use an onnx scheme, or report it")


def last_words(stderr: str) -> str:
    """The last line of a program's stderr that says something, 200 characters at most.

    >>> last_words("INFO: loading\\nNotImplementedError: no such model\\n\\n100%|####| 3/3\\n")
    'NotImplementedError: no such model'
    """
    lines = [line.strip() for line in stderr.splitlines()]
    said = [
        line for line in lines if line and "%|" not in line and not line.startswith(("INFO:", "DEBUG:", "WARNING:"))
    ]
    return said[-1][:200] if said else ""
