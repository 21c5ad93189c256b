"""GGUF files of tiny checkpoints by the real converter, made once for all tests: never write to them."""

from __future__ import annotations

from pathlib import Path

from mpa_edge.config.scheme import Component
from mpa_edge.exporters.publish.layout import file_name
from mpa_edge.exporters.source import Source
from mpa_edge.vlm import WEIGHTS
from tests.families import zoo
from tests.vlm.llama_exported import gguf_folder

STUDENT = WEIGHTS / "student"


def source_of(folder: Path) -> Source:
    return Source(folder.name, folder, Path("never-written"))


def checkpoint(which: str) -> Path:
    return STUDENT if which == "student" else zoo.checkpoint(which)


def converted(which: str, component: Component, precision: str = "f16") -> Path:
    folder = gguf_folder(which, mmproj=precision) if component == "mmproj" else gguf_folder(which, precision)
    return folder / file_name("gguf", component, precision)
