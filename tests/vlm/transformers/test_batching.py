"""Order of requests: one image stays together, stored ones come first; batch size, and the memory that it goes by."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mpa_edge.types import Request
from mpa_edge.vlm.transformers import batching
from mpa_edge.vlm.transformers.batching import FIRST_BATCH, BatchSize, Query, in_order, length_of

GB = 10**9


def asked(images: list[Image.Image], limits: list[int]) -> list[Query]:
    pairs = zip(images, limits, strict=True)
    return [Query(i, Request(image, "?", limit), "head", (1,)) for i, (image, limit) in enumerate(pairs)]


def places(requests: list[Query], stored: tuple[Image.Image, ...] = ()) -> list[int]:
    found = in_order(requests, lambda size: size[0] * size[1], lambda one: any(one.request.image is s for s in stored))
    return [one.place for one in found]


def test_by_limit_then_length_then_image() -> None:
    small, large, twin = Image.new("L", (2, 2)), Image.new("L", (4, 4)), Image.new("L", (2, 2))
    requests = asked([large, small, twin, small, large, twin], [8, 8, 8, 8, 4, 8])
    assert places(requests) == [4, 1, 3, 2, 5, 0]


def test_what_is_stored_comes_before_what_would_push_it_out() -> None:
    images = [Image.new("L", (2, 2)) for _ in range(3)]
    assert places(asked(images, [8, 8, 8]), stored=(images[2],)) == [2, 0, 1]


def test_images_of_one_kind_of_processor_are_one_length_when_their_tokens_are() -> None:
    class Resizing:
        merge_size = 2

    by_area, by_shape = length_of(Resizing()), length_of(object())
    assert by_area((100, 50)) < by_area((400, 200))
    assert by_shape((100, 50)) == by_shape((400, 200)) == by_shape((50, 100)) > by_shape((300, 300))


# --- batch size -------------------------------------------------------------------------------------------------------


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
    machine = batching.free_bytes("cpu")
    monkeypatch.setattr(batching, "CGROUP", group(tmp_path, limit, used, cached))
    assert batching.free_bytes("cpu") == pytest.approx(min(free, machine), rel=0.5)


def test_a_group_that_says_nothing_is_no_limit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(batching, "CGROUP", group(tmp_path, "1000", 10, 10))
    (tmp_path / "memory.current").unlink()
    assert batching.free_bytes("cpu") > 10**6
