from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.runs import files, lock, memory
from mpa_edge.runs import manifest as folders

INPUTS = {"recipe": "aa", "images": "bb"}


def finish(folder: Path, inputs: dict[str, str] = INPUTS) -> folders.Manifest:
    return folders.finish(
        folder, "annotate", inputs=inputs, config={"n": 1}, seed=3, counts={"rows": 2}, packages=("numpy", "no-such")
    )


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A finished stage folder with two outputs."""
    folder = tmp_path / "run" / "1-annotate"
    folders.prepare(folder, INPUTS)
    (folder / "sub").mkdir()
    files.write_bytes(folder / "a.bin", b"a")
    files.write_bytes(folder / "sub" / "b.bin", b"b")
    finish(folder)
    return folder


def test_a_finished_stage_is_done(stage: Path) -> None:
    assert folders.is_done(stage, INPUTS)
    manifest = folders.read_manifest(stage)
    assert manifest is not None
    assert set(manifest.outputs) == {"a.bin", "sub/b.bin"}
    assert manifest.counts == {"rows": 2}
    assert "numpy" in manifest.versions
    assert "no-such" not in manifest.versions


@pytest.mark.parametrize("harm", ["change", "delete", "no manifest", "half manifest", "other manifest", "other inputs"])
def test_anything_else_is_not_done(stage: Path, harm: str) -> None:
    inputs = dict(INPUTS)
    if harm == "change":
        (stage / "a.bin").write_bytes(b"x")
    elif harm == "delete":
        (stage / "sub" / "b.bin").unlink()
    elif harm == "no manifest":
        (stage / "manifest.json").unlink()
    elif harm == "half manifest":
        (stage / "manifest.json").write_text((stage / "manifest.json").read_text()[:50])
    elif harm == "other manifest":
        (stage / "manifest.json").write_text("{}")
    else:
        inputs["recipe"] = "cc"
    assert not folders.is_done(stage, inputs)


def test_prepare_keeps_what_is_sound_and_drops_what_is_damaged(stage: Path) -> None:
    (stage / "a.bin").write_bytes(b"x")
    (stage / ".a.bin.99.tmp").write_bytes(b"half")
    assert folders.prepare(stage, INPUTS)
    assert [path.name for path in folders.output_files(stage)] == ["b.bin"]
    assert not (stage / ".a.bin.99.tmp").exists()
    assert folders.read_manifest(stage) is None


@pytest.mark.parametrize("fresh", [True, False])
def test_prepare_starts_again_with_other_inputs_or_fresh(stage: Path, fresh: bool) -> None:
    assert not folders.prepare(stage, INPUTS if fresh else {"recipe": "cc"}, fresh=fresh)
    assert folders.output_files(stage) == []
    assert folders.prepare(stage, INPUTS if fresh else {"recipe": "cc"})


def test_hash_of_json_ignores_key_order() -> None:
    assert (
        files.sha256_json({"a": 1, "b": 2})
        == files.sha256_json({"b": 2, "a": 1})
        != files.sha256_json({"a": 1, "b": 3})
    )


def test_the_clock_adds_up_attempts(tmp_path: Path) -> None:
    files.write_json(tmp_path / folders.CLOCK, {"seconds": 100.0})
    clock = folders.StageClock(tmp_path)
    time.sleep(0.02)
    assert 100.02 <= clock.tick() < 101
    assert 100.02 <= clock.tick() == folders.seconds_so_far(tmp_path) < 101


@pytest.mark.parametrize("stored", [[], {}, {"seconds": "x"}, {"seconds": None}, 7])
def test_a_clock_that_is_damaged_starts_anew(tmp_path: Path, stored: object) -> None:
    files.write_json(tmp_path / folders.CLOCK, stored)
    assert folders.seconds_so_far(tmp_path) == 0.0


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"old": True})
    with pytest.raises(KeyboardInterrupt), files.atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"old": True}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_full_disk_is_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    """The file size limit makes a real write fail as a full disk does."""
    path = tmp_path / "big.bin"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(MpaError, match=r"disk full at .*: free \d+ MB, then rerun; nothing is lost"):
            files.write_bytes(path, b"x" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["big.bin"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_and_quota_are_a_full_disk(tmp_path: Path, code: int) -> None:
    with pytest.raises(MpaError, match="disk full"), files.disk_errors(tmp_path, 1):
        raise OSError(code, "x")
    with pytest.raises(PermissionError), files.disk_errors(tmp_path, 1):
        raise PermissionError(errno.EACCES, "x")


def test_free_space_is_asked_before(tmp_path: Path) -> None:
    files.require_free(tmp_path / "not" / "there", 1)
    with pytest.raises(MpaError, match=r"disk full at .*: free \d+ MB"):
        files.require_free(tmp_path, 1 << 60)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MpaError, match="cannot make folder .*choose another --out"):
        files.make_folder(tmp_path / "file" / "run")


HOLDER = """
import sys, time
from pathlib import Path
from mpa_edge.runs import files, lock, memory
from mpa_edge.runs import manifest as folders
with lock.run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds tmp_path/run."""
    root = Path(lock.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_two_processes_cannot_work_in_one_run(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(MpaError, match=f"is in use by process {holder.pid}: wait for it"),
        lock.run_lock(tmp_path / "run"),
    ):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.run_lock(tmp_path / "run"):
        assert (tmp_path / "run" / lock.LOCK).read_text() == f"{os.getpid()}\n"


def test_the_lock_may_be_entered_again_and_sweeps(tmp_path: Path) -> None:
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "run" / "deep" / ".x.json.1.tmp").write_text("half")
    with lock.run_lock(tmp_path / "run"):
        assert not (tmp_path / "run" / "deep" / ".x.json.1.tmp").exists()
        with lock.run_lock(tmp_path / "run"):
            pass
        with pytest.raises(BlockingIOError):  # the inner one did not let go
            import fcntl

            with (tmp_path / "run" / lock.LOCK).open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_peak_memory_follows_what_was_used() -> None:
    before = memory.peak_rss_bytes()
    block = b"x" * (before + 50_000_000)
    assert memory.peak_rss_bytes() >= before + 40_000_000
    del block
    assert memory.peak_rss_bytes() >= before + 40_000_000
