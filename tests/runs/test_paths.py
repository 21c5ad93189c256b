"""Names and links that lead out of a folder: none is resolved, and none is followed by a delete or a write."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mpa_edge.errors import MpaError, OutsideError
from mpa_edge.runs import files, paths
from mpa_edge.runs.log import logger, open_log
from mpa_edge.runs.manifest import clear
from mpa_edge.types import ParityRecord

LINKS = ("way/a.txt", "sub/way", "file")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Files of somebody, beside the run."""
    (tmp_path / "victim" / "sub").mkdir(parents=True)
    (tmp_path / "victim" / "a.txt").write_text("precious")
    (tmp_path / "victim" / "sub" / "b.txt").write_text("deep")
    return tmp_path / "victim"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run" / "sub").mkdir(parents=True)
    (tmp_path / "run" / "sub" / "x").write_text("x")
    return tmp_path / "run"


def untouched(victim: Path) -> bool:
    found = {path.relative_to(victim).as_posix(): path.read_text() for path in victim.rglob("*") if path.is_file()}
    return found == {"a.txt": "precious", "sub/b.txt": "deep"}


@pytest.mark.parametrize("name", ["sub/x", "new", "sub/new/deeper", "..x", "a\\b", "sub//x", "./sub/x"])
def test_names_below_a_root(run: Path, name: str) -> None:
    assert paths.inside(run, name) == run / name
    alias = run.with_name("alias")
    alias.symlink_to(run)
    assert paths.inside(alias, name) == alias / name


@pytest.mark.parametrize(
    "name",
    ["", ".", "./", "..", "../x", "sub/../../x", "sub/..", "/etc/x", "//x", "a\0b", *LINKS],
)
def test_names_that_lead_out(run: Path, victim: Path, name: str) -> None:
    (run / "way").symlink_to(victim)
    (run / "sub" / "way").symlink_to("nowhere")
    (run / "file").symlink_to(victim / "a.txt")
    with pytest.raises(OutsideError, match="leads out of .*: do not use this folder"):
        paths.inside(run, name)


def test_a_row_with_an_image_elsewhere_is_none() -> None:
    row = {"id": "1", "image_id": "0", "question": "q?", "answer": "a", "teacher_answer": "a"}
    row |= {"student_answer": "b", "verdict": "gap"}
    assert ParityRecord.model_validate(row | {"image": "a/b.png"}).image == "a/b.png"
    for image in ("../b.png", "/b.png", "a/../../b.png", ""):
        with pytest.raises(OutsideError, match="leads out of its folder"):
            ParityRecord.model_validate(row | {"image": image})


def test_remove_takes_the_link_and_not_what_it_leads_to(run: Path, victim: Path) -> None:
    for name, to in (("folder", victim), ("file", victim / "a.txt"), ("broken", victim / "none")):
        (run / name).symlink_to(to)
        paths.remove(run / name)
        assert not (run / name).is_symlink()
    (run / "sub" / "way").symlink_to(victim)
    paths.remove(run / "sub")
    assert os.listdir(run) == []
    paths.remove(run / "sub")
    paths.remove(run / "sub" / "x")
    assert untouched(victim)


def test_what_cannot_be_removed_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "unlink", lambda _: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    with pytest.raises(MpaError, match=r"cannot remove .*/x \(Operation not permitted\): remove it yourself"):
        paths.remove(run / "sub" / "x")
    paths.remove(run / "sub" / "x", quietly=True)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_bytes(path, b"new"),
        lambda path: files.write_json(path, {}),
        lambda path: paths.new_file(path).close(),
        lambda path: paths.copy(Path(__file__), path),
        lambda path: files.link_or_copy(Path(__file__), path),
        lambda path: paths.move(path.parent / "sub" / "x", path),
    ],
)
def test_a_link_in_the_place_of_a_file_is_replaced(run: Path, victim: Path, write: Callable[[Path], object]) -> None:
    (run / "file").symlink_to(victim / "a.txt")
    write(run / "file")
    assert not (run / "file").is_symlink()
    assert untouched(victim)


@pytest.mark.parametrize("kind", ["link", "broken link", "hard link", "pipe", "folder"])
def test_a_file_that_is_changed_in_place_is_our_own(run: Path, victim: Path, kind: str) -> None:
    path = run / "log"
    if kind == "hard link":
        os.link(victim / "a.txt", path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(victim / ("a.txt" if kind == "link" else "new"))
    for mode in ("ab", "r+b"):
        with pytest.raises(MpaError, match="is a folder: name a file|is .*: delete it, or put a copy"):  # noqa: SIM117
            with open(path, mode, opener=paths.open_in_place):
                pass
    assert untouched(victim)


def test_the_log_does_not_follow_a_link(run: Path, victim: Path) -> None:
    (run / "run.log").symlink_to(victim / "a.txt")
    open_log(run)
    logger.info("a line")
    assert untouched(victim)


@pytest.mark.parametrize("kind", ["link to a folder", "link to a file", "broken link", "pipe"])
def test_a_folder_with_anything_but_files_is_refused(run: Path, victim: Path, kind: str) -> None:
    paths.require_plain(run)
    paths.require_plain(run / "not there")
    alias = run.with_name("alias")
    alias.symlink_to(run)
    paths.require_plain(alias)
    path = run / "sub" / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link to a folder": victim, "link to a file": victim / "a.txt"}.get(kind, victim / "none"))
    with pytest.raises(MpaError, match="/sub/odd is .*: delete it, or put a copy of what you need in its place"):
        paths.require_plain(alias)


def test_clearing_a_folder_and_sweeping_stay_inside(run: Path, victim: Path) -> None:
    (run / "way").symlink_to(victim)
    (run / "sub" / ".x.9.tmp").symlink_to(victim)
    (run / ".own.tmp").write_text("of another program")
    (victim / ".y.9.tmp").write_text("")
    assert files.sweep(run) == 1
    assert (run / ".own.tmp").is_file()
    (victim / ".y.9.tmp").unlink()  # still there
    clear(run)
    assert os.listdir(run) == []
    assert untouched(victim)
