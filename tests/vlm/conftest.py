"""A tiny checkpoint with random weights, made once: loading, prompts and errors need no trained model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mpa_edge.nursery import models
from mpa_edge.vlm import checkpoint


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the student's shape with random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoint.quiet()
    models.build_model("student", seed=1).save_pretrained(folder)
    models.build_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def a_copy(random_checkpoint: Path, tmp_path: Path) -> Path:
    """One that a test may damage."""
    return Path(shutil.copytree(random_checkpoint, tmp_path / "copy"))
