"""A full disk in any stage: one line that says what to do, and the same command goes on when there is room."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mpa_edge.runs.files import TEMP_SUFFIX
from mpa_edge.runs.manifest import output_files, read_manifest
from mpa_edge.stages.pipeline import STAGES
from mpa_edge.stages.run import FOLDERS

pytestmark = pytest.mark.slow


def too_small_bytes(run: Path, stage: str) -> int:
    """Less than the largest file that a stage writes, more than what is written before it."""
    largest = max(path.stat().st_size for path in output_files(run / FOLDERS[stage]))
    before = max(path.stat().st_size for path in run.iterdir() if path.is_file() and path.suffix != ".log")
    assert before < largest
    return (before + largest) // 2


@pytest.mark.parametrize("stage", STAGES)
def test_no_room_for_a_file(forks, undisturbed, set_arguments, tmp_path: Path, stage: str) -> None:
    """A limit on the size of files makes every write fail half-way, as a full disk does."""
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    for later in list(STAGES)[list(STAGES).index(stage) :]:
        shutil.rmtree(out / FOLDERS[later])
    command = (stage, str(out))
    ended = forks(*command, max_file_bytes=too_small_bytes(undisturbed, stage))
    assert ended.rc == 1, ended.stderr
    assert ended.last.startswith("error: disk full at "), ended.stderr
    assert ended.last.endswith("MB, then rerun; nothing is lost")
    assert "Traceback" not in ended.stderr
    folder = out / FOLDERS[stage]
    assert read_manifest(folder) is None
    assert not list(out.rglob(f"*{TEMP_SUFFIX}"))
    # a shard's dropped rows go first and may be there; a part or a tensor file would be a lie
    assert not [path for path in folder.iterdir() if path.suffix == ".safetensors" or path.name.startswith("part-")]
    again = forks(*command)
    assert again.rc == 0, again.stderr
    assert read_manifest(folder) == read_manifest(undisturbed / FOLDERS[stage]) or same_outputs(out, undisturbed, stage)


def same_outputs(out: Path, undisturbed: Path, stage: str) -> bool:
    """The same files with the same content, but for what a clock measured."""
    found, expected = (read_manifest(run / FOLDERS[stage]) for run in (out, undisturbed))
    assert found is not None
    assert expected is not None
    timed = ("losses.json",)
    return {k: v for k, v in found.outputs.items() if k not in timed} == {
        k: v for k, v in expected.outputs.items() if k not in timed
    }


def test_too_little_room_is_said_before_anything_starts(forks, set_arguments, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = forks("align", "--out", str(out), *set_arguments(images__render__n=99_000_000))
    assert ended.rc == 1
    assert ended.stderr.startswith("error: disk full at ")
    assert len(ended.stderr.splitlines()) == 1
    assert not out.exists()
