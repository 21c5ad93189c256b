"""GGUF files of tiny checkpoints by the real converter, made once for all tests of a session: never write to them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from mpa_edge.exporters.gguf.convert import convert
from mpa_edge.exporters.source import Source
from mpa_edge.vlm import WEIGHTS
from tests.families import zoo

STUDENT = WEIGHTS / "student"


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mpa-edge-test-gguf-")


def source_of(folder: Path) -> Source:
    return Source(folder.name, folder, Path("never-written"))


def checkpoint(which: str) -> Path:
    return STUDENT if which == "student" else zoo.checkpoint(which)


@functools.cache
def converted(which: str, component: str, precision: str = "f16") -> Path:
    out = Path(_folder().name) / f"{which}-{component}-{precision}.gguf"
    convert(source_of(checkpoint(which)), component, out, precision)
    return out
