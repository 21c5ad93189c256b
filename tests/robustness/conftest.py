"""What the robustness tests share: a small real run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.forks import Forks

STAGES = ("annotate", "identify", "level", "merge", "evaluate")
# 24 images in 6 shards; a checkpoint and a look at the held-out slice every 2 steps; dropout needs its random state
SMALL = {
    "images.render.n": 24,
    "annotate.shard_size": 4,
    "evaluate.n": 40,
    "level.batch_size": 8,
    "level.max_steps": 10,
    "level.eval_steps": 2,
    "level.save_steps": 2,
    "level.min_gap": 4,
    "level.dropout": 0.1,
    "level.holdout": 0.25,
    "threads": 1,
}


def settings(**changed: Any) -> list[str]:
    """--set arguments of the small run; `level__rank=8` changes one."""
    values = SMALL | {key.replace("__", "."): value for key, value in changed.items()}
    return [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]


@pytest.fixture(scope="session")
def undisturbed(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, from beginning to end in one go. Copy it before changing anything."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = forks("align", "--out", str(out), *settings())
    assert ended.rc == 0, ended.stderr
    return out


@pytest.fixture(scope="session")
def set_arguments() -> Callable[..., list[str]]:
    return settings
