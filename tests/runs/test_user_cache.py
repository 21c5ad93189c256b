"""Folders of the user's cache: made once, whole or not at all. That two processes make one only: test_fetch.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpa_edge.errors import MachineError, MpaError
from mpa_edge.runs.user_cache import cache_folder, made_once


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_folder()


def test_it_is_made_once_and_again_after_it_was_left_half_made(cache: Path) -> None:
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "file").write_text("x")

    (cache / "a").mkdir(parents=True)  # of a process that was killed
    assert made_once("a", make, 1) == made_once("a", make, 1) == cache / "a"
    assert len(calls) == 1
    assert (cache / "a" / "file").read_text() == "x"


def test_what_fails_leaves_nothing(cache: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "file").write_text("x")
        raise MpaError("no")

    with pytest.raises(MpaError, match="no"):
        made_once("a", make, 1)
    assert [path.name for path in cache.iterdir()] == [".a.lock"]


def test_a_full_disk_and_a_cache_of_somebody_else_are_one_line(cache: Path) -> None:
    with pytest.raises(MachineError, match="disk full at .*mpa-edge: free"):
        made_once("a", lambda _: None, 10**18)
    (cache / ".b.lock").mkdir()
    with pytest.raises(MpaError, match="cannot write to the cache folder .*: set XDG_CACHE_HOME"):
        made_once("b", lambda _: None, 1)
