"""What the robustness tests share: a small real run, and a way to start, watch and kill `mpa-edge`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
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


@dataclass(frozen=True)
class Ended:
    """How a command ended; rc is minus the signal where it was killed."""

    rc: int
    stdout: str
    stderr: str
    orphans: int = 0
    """Processes that outlived it."""

    @property
    def last(self) -> str:
        return self.stderr.strip().splitlines()[-1] if self.stderr.strip() else ""


class Forks:
    """Commands in forked children, with an optional signal at a moment of a stage."""

    def __init__(self, cwd: Path) -> None:
        self.cwd, self.temporary = cwd, cwd / "tmp"
        self.temporary.mkdir()
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        env["TMPDIR"] = str(self.temporary)
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forks.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=env,
        )

    def __call__(
        self,
        *argv: str,
        run: Path | str = ".",
        stage: str | None = None,
        after_s: float = 0.0,
        sig: int = 0,
        max_file_bytes: int | None = None,
    ) -> Ended:
        order = {"argv": list(argv), "run": str(run), "stage": stage, "after_s": after_s, "signal": int(sig)}
        order["max_file_bytes"] = max_file_bytes
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))

    def kill(self, *argv: str, run: Path | str, stage: str | None, after_s: float) -> Ended:
        return self(*argv, run=run, stage=stage, after_s=after_s, sig=signal.SIGKILL)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    started = Forks(tmp_path_factory.mktemp("forks"))
    yield started
    assert started.process.stdin
    started.process.stdin.close()
    started.process.wait(120)


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
