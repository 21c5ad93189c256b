"""GGUF, hybrid and quantized folders of tiny checkpoints, made once and kept in the temp folder: read them only."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path

from mpa_edge.config.library import load_scheme
from mpa_edge.config.scheme import ONNX_COMPONENTS, Scheme, Tolerance
from mpa_edge.exporters.build import BuildContext, build
from mpa_edge.exporters.publish.layout import write_layout
from mpa_edge.exporters.source import Source, open_source
from mpa_edge.runs.files import sha256_json
from tests.vlm.exported import PACKAGE, alone, checkpoint, fill_parts

SOURCES = (
    "exporters/graphs/*.py",
    "exporters/onnx/*.py",
    "exporters/publish/layout.py",
    "exporters/gguf/*.py",
    "vlm/pixels/config.py",
)
ANY = Tolerance(vision_cosine_min=0.5, kl_max=10.0)
CONTEXT_TOKENS = 1024


@functools.cache
def gguf_folder(which: str, language: str = "f16", mmproj: str = "f16") -> Path:
    """The two files of llama.cpp, made by the real converter."""
    return _folder(
        which,
        Scheme(
            schema_version=1,
            name=f"gguf-{language}-{mmproj}",
            format="gguf",
            tolerance=ANY,
            components={"language": language, "mmproj": mmproj},
        ),
    )


@functools.cache
def scheme_folder(which: str, name: str) -> Path:
    """Any scheme of export/schemes that needs no calibration."""
    return _folder(which, load_scheme(name))


@functools.cache
def hybrid_folder(which: str, language: str = "f16", vision: str = "fp32") -> Path:
    """An ONNX vision encoder and a GGUF language model."""
    return _folder(
        which,
        Scheme(
            schema_version=1,
            name=f"hybrid-{vision}-{language}",
            format="hybrid",
            tolerance=ANY,
            components={"language": language, "vision": vision},
        ),
    )


def _folder(which: str, scheme: Scheme) -> Path:
    source = open_source(str(checkpoint(which)), out="runs")
    home = Path(tempfile.gettempdir()) / f"mpa-edge-llama-{os.getuid()}" / f"{which.replace(':', '-')}-{_key(source)}"
    folder = home / sha256_json(scheme.model_dump())[:8] / scheme.name
    with alone(home):
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            made, parts = Path(tempfile.mkdtemp(dir=home)), home / "parts"
            fill_parts(which, parts, tuple(name for name in scheme.components if name in ONNX_COMPONENTS))
            build(BuildContext(source, made, parts, None, 1), scheme)
            write_layout(source, scheme, made, None, CONTEXT_TOKENS, 1)
            os.replace(made, folder)
    return folder


def _key(source: Source) -> str:
    files = [path for pattern in SOURCES for path in sorted(PACKAGE.glob(pattern))]
    return sha256_json([source.fingerprint, *(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)])[:12]
