"""A tiny checkpoint with random weights, made once, and a client that does not wait for long."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mpa_edge.nursery import models
from mpa_edge.vlm.openai import circuit_breaker
from mpa_edge.vlm.transformers import checkpoint


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


@pytest.fixture
def impatient_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts are short, and no key lies in the environment."""
    monkeypatch.setattr(circuit_breaker, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(circuit_breaker, "LOOK_EVERY_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
