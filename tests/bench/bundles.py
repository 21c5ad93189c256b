"""Bundles for tests: small questions, hand-made exports for what needs no model, real ones for what does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mpa_edge.bench.device.protocol import ORDER, OUT, JobOrder, Line, Step, read_lines, to_json
from mpa_edge.bench.host.bundle import Bundle, BundleManifest, Question, make_bundle
from mpa_edge.config.library import load_scheme
from mpa_edge.runs.files import sha256_file
from tests.exporters import hand_made


def plain_order(questions: Sequence[Question], *, base: bool = False) -> JobOrder:
    """Each question once to each model."""
    variants = {name: f"models/{name}" for name in (("artifact", "base") if base else ("artifact",))}
    return JobOrder(variants, tuple(Step(name, question.id) for name in variants for question in questions))


def image_questions(folder: Path, names: Sequence[str]) -> list[Question]:
    """An image for each name, and a question about it."""
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
    given = {"questions": image_questions(images, ["a.png", "b.png"]), "artifact": export, "base": None} | changed
    given.setdefault("order", plain_order(given["questions"], base=bool(given["base"])))  # type: ignore[arg-type]
    return make_bundle(folder=place or folder / "bundle", images=images, **given)  # type: ignore[arg-type]


def read_bundle(folder: Path) -> Bundle:
    """A bundle whose files are those of its manifest."""
    manifest = BundleManifest.model_validate(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    assert {name: sha256_file(folder / name) for name in manifest.files} == {
        name: file.sha256 for name, file in manifest.files.items()
    }
    return Bundle(folder, manifest)


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
