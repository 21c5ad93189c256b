"""A bundle for the tests of the phone driver, and the server that answers it."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mpa_edge.artifact import Artifact, read_artifact
from mpa_edge.assets import load_target
from mpa_edge.bench.bundle import Bundle, Question, make_bundle
from mpa_edge.bench.lines import JobOrder, Line, Step, read_lines
from mpa_edge.nursery.render import pictures
from tests.vlm.llama_exported import gguf_folder

ASKED = ("How many bars are there?", "Which bar is highest?", "What is the value of the purple bar?")
N_PICTURES = 2


@functools.cache
def bundle() -> Bundle:
    """The built-in student twice, in 8 bits as the artifact, in 16 as base."""
    folder = Path(tempfile.mkdtemp(prefix="mpa-edge-phone-"))
    (folder / "images").mkdir()
    questions = []
    for n, picture in enumerate(pictures(N_PICTURES, 99, "target")):
        picture.image.save(folder / "images" / f"{n}.png")
        questions += [Question(id=f"{n}-{i}", image=f"{n}.png", prompt=text, max_new_tokens=12) for i, text in enumerate(ASKED)]
    return make_bundle(
        folder=folder / "bundle", target=load_target("phone"), artifact=gguf_folder("student", "q8_0"),
        base=gguf_folder("student"), questions=questions, images=folder / "images",
    )  # fmt: skip


def artifacts() -> dict[str, Artifact]:
    return {name: read_artifact(bundle().folder / place) for name, place in bundle().variants.items()}


def order(*steps: tuple[str, str, int], **changes: object) -> JobOrder:
    return JobOrder(dict(bundle().variants), tuple(Step(*step) for step in steps), threads=1, **changes)


def lines(out: Path) -> list[Line]:
    return list(read_lines(out.read_text(encoding="utf-8").splitlines()))


__all__ = ["Callable", "Iterator", "artifacts", "bundle", "contextmanager", "lines", "order"]
