"""kill -9 at any moment of any stage, then the same command: the result is that of an undisturbed run."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest

from mpa_edge.runs.files import read_json, sha256_file
from mpa_edge.runs.manifest import read_manifest
from mpa_edge.runs.parquet import read_dropped, read_parts, read_rows
from mpa_edge.types import ParityRecord, Prediction, PseudoAnnotation

pytestmark = pytest.mark.slow

KILLS = {"annotate": 6, "identify": 4, "level": 7, "merge": 3, "evaluate": 4}  # 24
SEED = 20_240_917


def seconds(run: Path, stage: str) -> float:
    folder = {"annotate": "1-annotate", "identify": "2-identify", "level": "3-level", "merge": "merged"}.get(
        stage, stage
    )
    manifest = read_manifest(run / folder)
    assert manifest is not None
    return manifest.seconds


def losses(run: Path) -> list[dict]:
    """The curve without what a clock measured."""
    kept = ("step", "loss", "eval_loss", "learning_rate", "grad_norm", "epoch")
    return [{key: entry[key] for key in kept if key in entry} for entry in read_json(run / "3-level" / "losses.json")]


def content(run: Path) -> dict:
    """Everything that must not depend on how often a run was killed."""
    return {
        "annotations": read_parts(run / "1-annotate", PseudoAnnotation),
        "not annotated": read_dropped(run / "1-annotate"),
        "verdicts": read_parts(run / "2-identify", ParityRecord),
        "not verified": read_dropped(run / "2-identify"),
        "losses": losses(run),
        "adapter": sha256_file(run / "3-level" / "adapter" / "adapter_model.safetensors"),
        "merged": sha256_file(run / "merged" / "model.safetensors"),
        **{
            name: read_rows(run / "evaluate" / f"predictions-{name}.parquet", Prediction)
            for name in ("teacher", "base", "aligned")
        },
        "result": read_json(run / "evaluate" / "evaluate.json"),
    }


def leftovers(run: Path) -> list[str]:
    """Files of unfinished work."""
    known = {".inputs.json", ".seconds.json", ".lock", ".rendered.json", ".images.jsonl"}
    return [str(path.relative_to(run)) for path in run.rglob(".*") if path.name not in known]


@pytest.mark.timeout(900)
def test_kills_at_random_moments_of_every_stage(forks, undisturbed, set_arguments, tmp_path) -> None:
    rng, out = random.Random(SEED), tmp_path / "run"
    command, killed, said = ("align", "--out", str(out), *set_arguments()), 0, ""
    for stage, times in KILLS.items():
        for _ in range(times):
            # short moments keep the kills inside a stage, also where the machine was busier when it was measured
            moment = rng.uniform(0, seconds(undisturbed, stage) / times)
            ended = forks.kill(*command, run=out, stage=stage, after_s=moment)
            killed += ended.rc == -signal.SIGKILL
            said += ended.stderr
            assert ended.rc in (0, -signal.SIGKILL), ended.stderr
    assert killed >= 20, f"only {killed} of {sum(KILLS.values())} runs were still at work when they were killed"
    ended = forks(*command, run=out)
    assert ended.rc == 0, ended.stderr
    assert all(f"{stage}: resuming" in said + ended.stderr for stage in KILLS)
    expected, found = content(undisturbed), content(out)
    for key, value in expected.items():
        assert found[key] == value, key
    ids = [row.id for row in found["annotations"]]
    assert len(ids) == len(set(ids))
    assert not leftovers(out)


@pytest.mark.timeout(600)
def test_kills_that_nobody_aimed(forks, undisturbed, set_arguments, tmp_path) -> None:
    rng, out = random.Random(SEED + 1), tmp_path / "run"
    command = ("align", "--out", str(out), *set_arguments())
    for _ in range(6):
        ended = forks.kill(*command, run=out, stage=None, after_s=rng.uniform(0, 2.5))
        assert ended.rc in (0, -signal.SIGKILL), ended.stderr
    ended = forks(*command, "--json", run=out)
    assert ended.rc == 0, ended.stderr
    assert json.loads(ended.stdout)["accuracy"]["n"] == 40
    assert content(out) == content(undisturbed)
