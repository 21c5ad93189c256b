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


@pytest.fixture
def write_silver() -> Callable[..., None]:
    """write_silver(run, rows): the run has a silver set."""

    def write(run: Run, rows: list[dict[str, object]]) -> None:
        folder = run.folder / "silver"
        folder.mkdir(exist_ok=True)
        (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        finish(folder, "silver", inputs={}, config={}, seed=0, counts={"questions": len(rows)})

    return write


@pytest.fixture
def reviewable(tmp_path: Path, write_silver: Callable[..., None]) -> Run:
    """The run."""
    images = tmp_path / "photos"
    images.mkdir()
    for i in range(N // 2):
        Image.new("RGB", (40 + i, 30), (10 * i, 80, 160)).save(images / f"{i}.png")
    run = Run(tmp_path / "run", recipe_with(task="stvqa", evaluate__n=N), images=str(images))
    run.folder.mkdir()
    remember(run)
    write_silver(run, silver_rows())
    return run
