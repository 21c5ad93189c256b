"""Benchmark folders on the disk: whole, torn, missing, damaged, hostile."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mpa_edge.bench.report.read import data_uri, find_benches, log_line, read_bench
from mpa_edge.bench.results.records import ANSWERS, BENCH, SWEEP, THUMBNAILS, TIMINGS
from mpa_edge.errors import MpaError
from tests.bench import made_up


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """A copy of one benchmark that may be damaged."""
    return shutil.copytree(run / "bench" / "jetson" / "gguf-q8_0", tmp_path / "jetson" / "gguf-q8_0")


def test_every_benchmark_of_a_run_is_found(run: Path) -> None:
    names = ["/".join(path.parts[-2:]) for path in find_benches(run)]
    assert names == ["arm64/gguf-q8_0", "jetson/gguf-q2_k", "jetson/gguf-q8_0", "jetson/onnx-int8"]


def test_a_benchmark_folder_and_a_target_folder_work_too(run: Path) -> None:
    one = run / "bench" / "jetson" / "gguf-q8_0"
    assert find_benches(one) == [one]
    assert len(find_benches(run / "bench" / "jetson")) == 3


def test_nothing_there_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MpaError, match=f"has no benchmark yet: mpa-edge bench {tmp_path}$"):
        find_benches(tmp_path)
    with pytest.raises(MpaError, match="no folder .*nowhere"):
        find_benches(tmp_path / "nowhere")


def test_all_of_it_is_read(folder: Path, run: Path) -> None:
    shutil.copy(run / "bench" / "jetson" / SWEEP, folder.parent / SWEEP)
    data = read_bench(folder)
    assert (len(data.answers), len(data.timings), len(data.thumbnails)) == (400, 80, 12)
    assert data.sweep is not None
    assert data.notes == ()
    assert data.title == "minicharts: gguf-q8_0 on jetson"
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in data.thumbnails.values())


@pytest.mark.parametrize("name", [ANSWERS, TIMINGS])
def test_a_missing_side_file_is_said(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name} is missing" in read_bench(folder).notes


def test_a_torn_side_file_keeps_its_whole_lines(folder: Path) -> None:
    text = (folder / ANSWERS).read_bytes()
    (folder / ANSWERS).write_bytes(text[:-40] + b"\n\xff\xfe\n[]\n")
    data = read_bench(folder)
    assert len(data.answers) == 399
    assert data.notes == (f"{ANSWERS}: 3 of 402 lines are damaged and left out",)


def test_missing_thumbnails_are_said(folder: Path) -> None:
    shutil.rmtree(folder / THUMBNAILS)
    assert read_bench(folder).notes == ("12 of 12 thumbnails are missing or cannot be shown",)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 2}', "\x00"])
def test_a_damaged_bench_is_one_line(folder: Path, text: str) -> None:
    (folder / BENCH).write_text(text)
    with pytest.raises(MpaError, match="is damaged .*: run mpa-edge bench again$") as error:
        read_bench(folder)
    assert "\n" not in str(error.value)


def test_a_damaged_sweep_is_one_line(folder: Path) -> None:
    (folder.parent / SWEEP).write_text("{}")
    with pytest.raises(MpaError, match=r"sweep\.json is damaged"):
        read_bench(folder)


def test_thumbnails_come_from_the_folder_only(folder: Path) -> None:
    outside = folder.parent / "secret.jpg"
    outside.write_bytes(b"\xff\xd8\xff secret")
    (folder / THUMBNAILS / "link.jpg").symlink_to(outside)
    (folder / THUMBNAILS / "page.jpg").write_text("<svg onload=alert(1)>")
    (folder / THUMBNAILS / "huge.jpg").write_bytes(b"\xff\xd8\xff" + bytes(400_000))
    names = (
        "../secret.jpg",
        str(outside),
        "thumbnails/link.jpg",
        "thumbnails/page.jpg",
        "thumbnails/huge.jpg",
        "a\0b",
        "",
    )
    assert [data_uri(folder, name) for name in names] == [None] * len(names)
    assert data_uri(folder, next(iter(sorted(f"{THUMBNAILS}/{p.name}" for p in (folder / THUMBNAILS).glob("q*.jpg")))))


def test_the_log_of_a_run_is_found(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "minicharts")
    folders = find_benches(copy)
    assert log_line([read_bench(folder) for folder in folders]) == ""
    (copy / "run.log").write_text("started\n")
    benches = [read_bench(folder) for folder in folders]
    assert log_line(benches) == log_line(benches[:1]) == "Log: run.log"
    alone = shutil.copytree(folders[0], tmp_path / "one")
    (tmp_path / "run.log").write_text("of something else\n")
    assert not read_bench(alone).has_log


def test_of_several_runs_those_with_a_log_are_named(tmp_path: Path) -> None:
    for name in ("mine", "newer"):
        made_up.write(tmp_path / name / "bench" / "cpu" / "gguf-q8_0", run=name, n=20)
    (tmp_path / "newer" / "run.log").write_text("started\n")
    benches = [read_bench(folder) for name in ("mine", "newer") for folder in find_benches(tmp_path / name)]
    assert log_line(benches) == "Log: run.log (of newer)"
