"""fp32 ONNX folders of tiny checkpoints, made once and kept in the temp folder: read them, never write to them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import mpa_edge.exporters
from mpa_edge.config.library import load_scheme
from mpa_edge.exporters.onnx.export import export_component
from mpa_edge.exporters.publish.layout import file_name, write_layout
from mpa_edge.exporters.source import Source, open_source
from mpa_edge.vlm import resolve
from tests.families import zoo

PACKAGE = Path(mpa_edge.exporters.__file__).parents[1]
SOURCES = ("exporters/graphs/*.py", "exporters/onnx/export.py", "exporters/publish/layout.py", "vlm/pixels/config.py")
STUDENT, TEACHER = "student", "teacher"


@functools.cache
def checkpoint(which: str) -> Path:
    """Folder of a built-in model, or of a model type of the zoo, or of `llava:clip` or `llava:clip:full`."""
    if which in (STUDENT, TEACHER):
        return Path(resolve(f"nursery:{which}"))
    model_type, *options = which.split(":")
    return zoo.checkpoint(model_type, **dict(zip(("tower", "strategy"), options, strict=False)))


@functools.cache
def onnx_folder(which: str) -> Path:
    """Its export by the scheme onnx-fp32."""
    source = open_source(str(checkpoint(which)), out="runs")
    folder = Path(tempfile.gettempdir()) / f"mpa-edge-onnx-{os.getuid()}" / f"{which.replace(':', '-')}-{_key(source)}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        _export(source, made)
        try:
            os.replace(made, folder)
        except OSError:  # another process was quicker
            shutil.rmtree(made)
    return folder


def _export(source: Source, folder: Path) -> None:
    scheme = load_scheme("onnx-fp32")
    for component in scheme.components:
        out = folder / file_name("onnx", component, "fp32")
        out.parent.mkdir(exist_ok=True)
        export_component(source.checkpoint, component, out)
    write_layout(source, scheme, folder, None, 2048, 1)


def _key(source: Source) -> str:
    files = [path for pattern in SOURCES for path in sorted(PACKAGE.glob(pattern))]
    marks = [source.fingerprint, *(path.read_text(encoding="utf-8") for path in files)]
    return hashlib.sha256("\0".join(marks).encode()).hexdigest()[:12]


def change(folder: Path, **values: object) -> None:
    """Write other values into the artifact.json of a copy."""
    artifact = json.loads((folder / "artifact.json").read_text())
    (folder / "artifact.json").write_text(json.dumps(artifact | values))
