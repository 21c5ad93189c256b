"""`mpa-edge` commands in forks of one process that has imported everything: a new process spends seconds on that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
            [sys.executable, str(ROOT / "tests" / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=env,
        )

    def __call__(
        self,
        *argv: str | Path,
        run: Path | str = ".",
        stage: str | None = None,
        after_s: float = 0.0,
        sig: int = 0,
        max_file_bytes: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Ended:
        order = {"argv": [*map(str, argv)], "run": str(run), "stage": stage, "after_s": after_s, "signal": int(sig)}
        order |= {"max_file_bytes": max_file_bytes, "env": dict(env or {}), "cwd": str(cwd or self.cwd)}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))

    def kill(self, *argv: str | Path, run: Path | str, stage: str | None, after_s: float) -> Ended:
        return self(*argv, run=run, stage=stage, after_s=after_s, sig=signal.SIGKILL)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(120)
