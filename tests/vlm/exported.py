"""fp32 ONNX folders of tiny checkpoints, made once and kept in the temp folder: read them, never write to them.

A trace takes 10 to 30 s of CPU, whatever the size of the model: whoever needs other files of the same checkpoint starts
from these graphs (`fill_parts`).
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mpa_edge.exporters
from mpa_edge.config.library import load_scheme
from mpa_edge.config.scheme import ONNX_COMPONENTS, Component
from mpa_edge.exporters.build import MADE
from mpa_edge.exporters.onnx.export import export_component
from mpa_edge.exporters.publish.layout import file_name, write_layout
from mpa_edge.exporters.source import open_source
from mpa_edge.runs.files import read_json, sha256_file, write_json
from mpa_edge.vlm import resolve
from tests.families import zoo

PACKAGE = Path(mpa_edge.exporters.__file__).parents[1]
SOURCES = (
    "exporters/graphs/*.py",
    "exporters/onnx/export.py",
    "exporters/onnx/repeat.py",
    "exporters/publish/layout.py",
    "vlm/pixels/config.py",
)
STUDENT, TEACHER = "student", "teacher"


@functools.cache
def checkpoint(which: str) -> Path:
    """Folder of a built-in model, or of a model type of the zoo, or of `llava:clip` or `llava:clip:full`."""
    if which in (STUDENT, TEACHER):
        return Path(resolve(f"nursery:{which}"))
    model_type, *options = which.split(":")
    return zoo.checkpoint(model_type, **dict(zip(("tower", "strategy"), options, strict=False)))


@functools.cache
def home(which: str) -> Path:
    """Folder of everything that is made from it here."""
    source = open_source(str(checkpoint(which)), out="runs")
    files = [path for pattern in SOURCES for path in sorted(PACKAGE.glob(pattern))]
    marks = [source.fingerprint, *(path.read_text(encoding="utf-8") for path in files)]
    key = hashlib.sha256("\0".join(marks).encode()).hexdigest()[:12]
    ours = Path(tempfile.gettempdir()) / f"mpa-edge-onnx-{os.getuid()}"
    ours.mkdir(exist_ok=True, mode=0o700)
    folder = ours / f"{which.replace(':', '-')}-{key}"
    folder.mkdir(exist_ok=True)
    return folder


def graph(which: str, component: Component) -> Path:
    """One component as the tracer wrote it."""
    path = home(which) / "graphs" / file_name("onnx", component, "fp32")
    with alone(home(which) / component):
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            export_component(checkpoint(which), component, path)
    return path


@functools.cache
def onnx_folder(which: str) -> Path:
    """Its export by the scheme onnx-fp32."""
    folder, scheme = home(which) / "onnx-fp32", load_scheme("onnx-fp32")
    with alone(folder):
        if not folder.is_dir():
            made = Path(tempfile.mkdtemp(dir=folder.parent))
            (made / "onnx").mkdir()
            for component in scheme.components:
                shutil.copy(graph(which, component), made / "onnx")
            write_layout(open_source(str(checkpoint(which)), out="runs"), scheme, made, None, 2048, 1)
            os.replace(made, folder)
    return folder


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time makes a folder; the others wait and find it."""
    folder.parent.mkdir(exist_ok=True, mode=0o700)
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fill_parts(which: str, parts: Path, components: tuple[Component, ...] = ONNX_COMPONENTS) -> Path:
    """Put graphs into an export's folder of parts, as a killed export leaves them; returns it."""
    parts.mkdir(parents=True, exist_ok=True)
    made = read_json(parts / MADE) or {}
    for component in components:
        full = graph(which, component)
        name = f"onnx/{component}/{full.name}"
        if name not in made:
            (parts / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(full, parts / name)
            made[name] = {full.name: sha256_file(full)}
    write_json(parts / MADE, made)
    return parts


def change(folder: Path, **values: object) -> None:
    """Write other values into the artifact.json of a copy."""
    artifact = json.loads((folder / "artifact.json").read_text())
    (folder / "artifact.json").write_text(json.dumps(artifact | values))
