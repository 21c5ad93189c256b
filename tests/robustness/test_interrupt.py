"""Ctrl-C in every stage: one line, exit 130, and the same command goes on."""

from __future__ import annotations

import shutil
import signal

import pytest

from mpa_edge.runs.files import read_json

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stage", ["annotate", "identify", "level", "merge", "evaluate"])
def test_ctrl_c_ends_in_one_line(forks, set_arguments, tmp_path, undisturbed, stage) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    folders = {"annotate": "1-annotate", "identify": "2-identify", "level": "3-level", "merge": "merged"}
    shutil.rmtree(out / folders.get(stage, stage))
    command = ("align", "--out", str(out), *set_arguments())
    ended = forks(*command, run=out, stage=stage, after_s=0.3 if stage != "merge" else 0.05, sig=signal.SIGINT)
    assert ended.rc == 130, ended.stderr
    assert ended.last == "interrupted: rerun to resume"
    assert "Traceback" not in ended.stderr
    if stage in ("annotate", "level"):
        again = forks(*command, run=out)
        assert again.rc == 0, again.stderr
        assert f"{stage}: resuming" in again.stderr
        assert read_json(out / "evaluate" / "evaluate.json") == read_json(undisturbed / "evaluate" / "evaluate.json")


def test_ctrl_c_between_two_checkpoints_loses_only_those_steps(forks, set_arguments, tmp_path, undisturbed) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    shutil.rmtree(out / "3-level")
    command = ("level", "--out", str(out), *set_arguments())
    ended = forks(*command, run=out, stage="level", after_s=2.0, sig=signal.SIGINT)
    assert ended.rc == 130, ended.stderr
    assert not (out / "3-level" / "adapter").exists()
    assert forks(*command, run=out).rc == 0
    same = "adapter/adapter_model.safetensors"
    assert (out / "3-level" / same).read_bytes() == (undisturbed / "3-level" / same).read_bytes()
