"""The JavaScript peer: an unmodified @huggingface/transformers under node, installed once into the user's cache."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent / "js"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpa-edge-tests"
# its graphics libraries are not needed, and its CPU binary is inside the package
INSTALL = ("npm", "install", "--no-audit", "--no-fund", "--loglevel=error")
TYPES = {"f": "float32", "i": "int64", "b": "bool"}


@functools.cache
def client() -> Path:
    """Folder with the client, as package.json pins it. RuntimeError where node, npm or the packages are missing."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise RuntimeError(f"the JavaScript peer needs {program}: install Node.js 20 or later")
    mark = hashlib.sha256((HERE / "package.json").read_bytes()).hexdigest()[:12]
    folder = CACHE / f"js-{mark}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=CACHE))
        shutil.copy(HERE / "package.json", made)
        environment = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
        done = subprocess.run(INSTALL, cwd=made, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            shutil.rmtree(made)
            raise RuntimeError(f"npm could not install the JavaScript peer: {done.stderr.strip()[-500:]}")
        try:
            made.rename(folder)
        except OSError:  # another process was quicker
            shutil.rmtree(made)
    return folder


def generate(
    folder: Path, image: Path, text: str, feed: dict[str, np.ndarray], n_tokens: int, work: Path, dtype: Any = None
) -> dict[str, Any]:
    """What the client says of one image and question; js/generate.mjs explains the document."""
    inputs = {}
    for name, value in feed.items():
        array = np.ascontiguousarray(value, {"f": np.float32, "i": np.int64, "b": np.uint8}[value.dtype.kind])
        (work / f"{name}.bin").write_bytes(array.tobytes())
        inputs[name] = {"type": TYPES[value.dtype.kind], "dims": list(value.shape), "file": str(work / f"{name}.bin")}
    job = {
        "models": str(folder.parent),
        "name": folder.name,
        "image": str(image),
        "text": text,
        "feed": inputs,
        "max_new_tokens": n_tokens,
        "dtype": dtype,
    }
    (work / "job.json").write_text(json.dumps(job))
    # a module looks for packages beside itself, whatever the working folder is
    script = shutil.copy(HERE / "generate.mjs", client() / f"generate-{os.getpid()}.mjs")
    try:
        program = ["node", script, str(work / "job.json")]
        done = subprocess.run(program, capture_output=True, text=True, timeout=240)
    finally:
        Path(script).unlink()
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
