"""The batch size that is found, and the memory that it goes by."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_edge.vlm.transformers import batch_size
from mpa_edge.vlm.transformers.batch_size import FIRST_BATCH, BatchSize

GB = 10**9


def test_it_grows_while_memory_is_there_and_stops_at_the_largest() -> None:
    size, seen = BatchSize(256), []
    for _ in range(6):
        seen.append(size.size)
        size.worked(size.size, used_bytes=size.size, free=GB)
    assert seen == [32, 64, 128, 256, 256, 256]


def test_it_never_begins_above_the_largest_and_ends_at_it() -> None:
    assert BatchSize(3).size == 3
    size = BatchSize(48)
    size.worked(32, used_bytes=1, free=GB)
    assert size.size == 48


def test_a_batch_that_was_not_full_says_nothing() -> None:
    size = BatchSize(256)
    size.worked(31, used_bytes=1, free=GB)
    assert size.size == 32


def test_after_an_error_it_never_grows_to_that_again() -> None:
    size = BatchSize(1024)
    size.halve(32)
    size.worked(16, used_bytes=1, free=GB)
    assert size.size == 16
    size.halve(1)
    assert size.size == 1


@given(st.integers(1, 10**6), st.integers(1, 10**9))
def test_the_next_batch_fits_into_half_of_what_is_free(bytes_a_request: int, free: int) -> None:
    size = BatchSize(1024)
    for _ in range(12):
        size.worked(size.size, size.size * bytes_a_request, free)
    assert size.size == FIRST_BATCH or size.size * bytes_a_request <= free / 2
    assert size.size <= 1024


def group(folder: Path, limit: str, used: int, cached: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file {cached}\n")
    return folder


@pytest.mark.parametrize(
    ("limit", "used", "cached", "free"),
    [("1000", 600, 0, 400), ("1000", 600, 100, 600), ("1000", 1200, 0, 0), ("max", 600, 0, 10**15)],
)
def test_a_container_may_have_less_than_its_machine(
    tmp_path: Path, monkeypatch, limit: str, used: int, cached: int, free: int
) -> None:
    machine = batch_size.free_bytes("cpu")
    monkeypatch.setattr(batch_size, "CGROUP", group(tmp_path, limit, used, cached))
    assert batch_size.free_bytes("cpu") == pytest.approx(min(free, machine), rel=0.5)


def test_a_group_that_says_nothing_is_no_limit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(batch_size, "CGROUP", group(tmp_path, "1000", 10, 10))
    (tmp_path / "memory.current").unlink()
    assert batch_size.free_bytes("cpu") > 10**6
