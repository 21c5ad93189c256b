"""Bundles of three kinds and the runner in them, for the tests of what happens on a device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from mpa_edge.bench.device.protocol import JobOrder, Step
from mpa_edge.bench.host.bundle import Bundle
from mpa_edge.runs.wheel import build_zip
from tests.vlm.exported import onnx_folder
from tests.vlm.llama_exported import gguf_folder, hybrid_folder

EXPORTS = {"onnx": onnx_folder, "gguf": gguf_folder, "hybrid": hybrid_folder}
BOTH = {"artifact": "models/artifact", "base": "models/base"}
LONGEST_S = 60.0


def ids(bundle: Bundle) -> list[str]:
    rows = (bundle.folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["id"] for row in rows]


def everything(bundle: Bundle, **changed: object) -> JobOrder:
    """Both models in turn, each question twice."""
    asked = ids(bundle)
    steps = [Step(variant, one, again) for again in (0, 1) for variant in BOTH for one in asked]
    return JobOrder(**({"variants": BOTH, "steps": tuple(steps), "threads": 1} | changed))  # type: ignore[arg-type]


def start(bundle: Path, folder: Path, *options: str, **given: object) -> subprocess.Popen[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *options, str(bundle / "run.py"), str(folder)],
        env=environment,
        cwd="/",
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **given,
    )  # type: ignore[call-overload, no-any-return]


def run(bundle: Path, folder: Path, *options: str, **given: object) -> tuple[int, str]:
    """(exit status, stderr) of a run; nothing comes on stdout."""
    process = start(bundle, folder, *options, **given)
    out, err = process.communicate(timeout=LONGEST_S)
    assert out == ""
    return process.returncode, err


def said(answers: list[dict]) -> dict[tuple[str, str, int], tuple[str, int]]:
    return {(one["variant"], one["id"], one["repetition"]): (one["text"], one["tokens"]) for one in answers}


def changed_copy(bundle: Bundle, folder: Path, file: str, before: str, after: str) -> Path:
    """A copy of a bundle with one place of its code replaced."""
    copy = Path(shutil.copytree(bundle.folder, folder))
    with zipfile.ZipFile(copy / "mpa_edge.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    text = files[file].decode()
    assert text.count(before) == 1
    files[file] = text.replace(before, after).encode()
    (copy / "mpa_edge.zip").write_bytes(build_zip(files))
    return copy


def wait_for(condition, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
