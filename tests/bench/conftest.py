"""Bundles are made once for all tests of a worker."""

from __future__ import annotations

import json

import pytest

from mpa_edge.bench.host.bundle import Bundle, Question, make_bundle
from mpa_edge.images.folder import open_image
from mpa_edge.nursery.render import ANSWERS, render
from mpa_edge.questions.own import read_questions
from mpa_edge.types import Request
from mpa_edge.vlm import load
from tests.bench.bundles import plain_order
from tests.bench.runners import EXPORTS


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Four questions about two images, for each format."""
    home = tmp_path_factory.mktemp("bundles")
    images = render(home / "images", 2, 3, "target", answers_per_image=2)
    asked = [
        Question(id=f"{i} 'ü'", image=one.image, prompt=one.question, max_new_tokens=8)
        for i, one in enumerate(read_questions(images / ANSWERS).samples)
    ]
    return {
        name: make_bundle(
            folder=home / name,
            artifact=export("student"),
            base=export("student"),
            questions=asked,
            images=images,
            order=plain_order(asked, base=True),
        )
        for name, export in EXPORTS.items()
    }


@pytest.fixture(scope="session")
def at_home(bundles: dict[str, Bundle]) -> dict[str, dict[str, tuple[str, int]]]:
    """What the same exports answer in this process, each question alone."""
    found: dict[str, dict[str, tuple[str, int]]] = {}
    for name, bundle in bundles.items():
        model = load(str(EXPORTS[name]("student")), name="host", threads=1)
        rows = [json.loads(row) for row in (bundle.folder / "questions.jsonl").read_text().splitlines()]
        found[name] = {}
        for row in rows:
            reply = model.answer([Request(open_image(bundle.folder / row["image"]), row["prompt"], 8)])[0]  # type: ignore[arg-type]
            found[name][row["id"]] = (reply.text, reply.n_tokens)
        model.close()
    return found
