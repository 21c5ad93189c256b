"""A run with a silver set of 30 questions, and models' answers to them, as align and evaluate leave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mpa_edge.runs.manifest import finish
from mpa_edge.stages.run import Run, remember
from tests.stages.conftest import recipe_with

N = 30
HOSTILE = '<img src=x onerror="document.title=1">\u202e&amp;'
"""What a teacher may write."""


def silver_rows(n: int = N) -> list[dict[str, object]]:
    """Two questions about each of 15 images; the teacher answers with the number of the question."""
    return [
        {
            "id": f"q{i}",
            "image": f"{i // 2}.png",
            "question": f"What is {HOSTILE}{i}?",
            "answers": [f"w{i}"],
            "kind": ("count", "colour")[i % 2],
            "group": f"g{i // 4}",
            "truth": "teacher",
        }
        for i in range(n)
    ]


def put_silver(run: Run, rows: list[dict[str, object]]) -> None:
    """Give the run a silver set."""
    folder = run.folder / "silver"
    folder.mkdir(exist_ok=True)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    finish(folder, "silver", inputs={}, config={}, seed=0, counts={"questions": len(rows)})


def run_with_silver(folder: Path, images: Path, n: int = N) -> Run:
    """A run whose teacher has written `n` questions."""
    images.mkdir(exist_ok=True)
    for i in range(-(-n // 2)):
        Image.new("RGB", (40 + i, 30), (i, 80, 160)).save(images / f"{i}.png")
    run = Run(folder, recipe_with(task="stvqa", evaluate__n=n), images=str(images))
    run.folder.mkdir(parents=True)
    remember(run)
    put_silver(run, silver_rows(n))
    return run


@pytest.fixture
def write_silver() -> Callable[..., None]:
    """write_silver(run, rows): the run has a silver set."""
    return put_silver


@pytest.fixture
def reviewable(tmp_path: Path) -> Run:
    """The run."""
    return run_with_silver(tmp_path / "run", tmp_path / "photos")
