"""A machine goes in the middle: the job's own command, given again on another one, goes on from the bucket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpa_edge.config.library import parse_yaml
from mpa_edge.runs.parquet import read_rows
from mpa_edge.types import PseudoAnnotation
from tests.cloud.made import rendered
from tests.docs.markdown import ROOT

# little to do for each picture: what takes long is that torch is loaded twice
CHANGED = ("images.render.n=8", "annotate={shard_size: 1, samples_per_image: 1, votes: 0}", "evaluate.n=4")
OPTIONS = tuple(word for change in CHANGED for word in ("--set", change))
WAIT_S = 240


class Machine:
    """One rented machine: a home of its own, and the bucket under /mpa/out."""

    def __init__(self, home: Path, bucket: Path, script: str) -> None:
        program = home / "mpa-edge-env" / "bin" / "mpa-edge"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mpa_edge "$@"\n')
        program.chmod(0o755)
        self.log = home / "log"
        env = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with open(self.log, "w") as log:
            words = ["bash", "-c", script.replace("/mpa/out", str(bucket))]
            self.job = subprocess.Popen(words, env=env, cwd=home, stdout=log, stderr=log, start_new_session=True)

    def until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not happened():
            assert self.job.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def goes(self) -> None:
        os.killpg(self.job.pid, signal.SIGKILL)
        self.job.wait()


@pytest.mark.peer
@pytest.mark.slow
def test_it_goes_on_from_the_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = parse_yaml(rendered(options=OPTIONS, bucket="s3://kept/team").text, "task")["run"]
    stage = tmp_path / "bucket" / "team" / "minicharts" / "1-annotate"

    def parts() -> list[Path]:
        return sorted(stage.glob("part-*.parquet"))

    first = Machine(tmp_path / "one", tmp_path / "bucket", script)
    first.until(lambda: len(parts()) >= 1)
    first.goes()
    kept = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in parts()}
    assert not (stage / "manifest.json").exists()
    second = Machine(tmp_path / "two", tmp_path / "bucket", script)
    second.until(lambda: (stage / "manifest.json").exists())
    second.goes()
    assert "annotate: resuming" in second.log.read_text()
    assert kept == {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in kept}
    ids = [row.id for path in parts() for row in read_rows(path, PseudoAnnotation)]
    assert len(ids) == len(set(ids)) > 0
