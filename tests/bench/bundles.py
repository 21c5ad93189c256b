"""Bundles for tests: small questions, hand-made exports for what needs no model, real ones for what does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mpa_edge.bench.device.protocol import ORDER, OUT, JobOrder, Line, read_lines, to_json
from mpa_edge.bench.host.bundle import Bundle, Question, make_bundle
from mpa_edge.config.library import load_scheme, load_target
from tests.exporters import hand_made

TARGET = load_target("cpu")


def pictures(folder: Path, names: Sequence[str]) -> list[Question]:
    """A picture of its own for each name, and a question about it."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + i, 10), (10 * i, 0, 0)).save(path, "PNG")
    return [Question(id=f"q{i}", image=name, prompt=f"What is {i}?") for i, name in enumerate(names)]


def small(folder: Path, place: Path | None = None, scheme: str = "gguf-q8_0", **changed: object) -> Bundle:
    """A bundle without a model in it. The inputs are made once in `folder`."""
    export, images = folder / "export", folder / "images"
    if not export.exists():
        hand_made.export(export, load_scheme(scheme))
    given = {"questions": pictures(images, ["a.png", "b.png"]), "artifact": export, "base": None} | changed
    return make_bundle(folder=place or folder / "bundle", target=TARGET, images=images, **given)  # type: ignore[arg-type]


def job(folder: Path, order: JobOrder | None = None) -> Path:
    """A job folder with its order."""
    folder.mkdir(parents=True, exist_ok=True)
    if order:
        (folder / ORDER).write_text(to_json(order), encoding="utf-8")
    return folder


def lines_of(folder: Path) -> list[Line]:
    return list(read_lines((folder / OUT).read_text(encoding="utf-8", errors="replace").split("\n")))


def answers_of(folder: Path) -> list[dict]:
    return [line.values | {"variant": line.variant} for line in lines_of(folder) if line.kind == "answer"]


def rows_of(bundle: Path) -> list[dict]:
    return [json.loads(line) for line in (bundle / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
