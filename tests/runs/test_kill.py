"""kill -9 at any moment: what has its final name is whole, and the same command goes on to the same rows."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpa_edge.runs import lock, manifest, parquet
from mpa_edge.types import Sample

SHARDS = 60
WORKER = """
import sys
from pathlib import Path
from mpa_edge.runs import lock, manifest, parquet
from mpa_edge.types import Dropped, Sample
folder = Path(sys.argv[1]) / "1-annotate"
inputs = {"recipe": "aa"}
with lock.run_lock(Path(sys.argv[1])):
    print("on", flush=True)
    if manifest.is_done(folder, inputs):
        sys.exit()
    manifest.prepare(folder, inputs)
    clock = manifest.StageClock(folder)
    done = parquet.shards_done(folder, Sample)
    for shard in range(int(sys.argv[2])):
        if shard not in done:
            found = [Sample(id=f"{shard}-{i}", image="a.png", question="q" * 999, answers=("x",)) for i in range(20)]
            lost = [Dropped(id=str(shard), image="a.png", stage="annotate", reason="no answer", detail="")]
            parquet.write_part(folder, shard, found, lost, Sample)
            clock.tick()
    manifest.finish(folder, "annotate", inputs=inputs, config={}, seed=0, counts={"rows": 1})
"""


def start(run: Path) -> subprocess.Popen[str]:
    root = str(Path(lock.__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root}
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(run), str(SHARDS)], env=env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    return process


@pytest.mark.slow
def test_twenty_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    rng, run, kills = random.Random(0), tmp_path / "run", 0
    for _ in range(20):
        process = start(run)
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        for path in (run / "1-annotate").glob("part-*.parquet"):
            assert len(parquet.read_rows(path, Sample)) == 20
    assert kills >= 5
    assert start(run).wait() == 0
    folder = run / "1-annotate"
    assert manifest.is_done(folder, {"recipe": "aa"})
    ids = [row.id for row in parquet.read_parts(folder, Sample)]
    assert ids == [f"{s}-{i}" for s in range(SHARDS) for i in range(20)]
    assert len(parquet.read_dropped(folder)) == SHARDS
    assert list(run.rglob("*.tmp")) == []
