"""The order of requests: what shares a picture stays together, what is stored comes first."""

from __future__ import annotations

from PIL import Image

from mpa_edge.types import Request
from mpa_edge.vlm.transformers.batching import Query, in_order, length_of


def asked(images: list[Image.Image], limits: list[int]) -> list[Query]:
    pairs = zip(images, limits, strict=True)
    return [Query(i, Request(image, "?", limit), "head", (1,)) for i, (image, limit) in enumerate(pairs)]


def places(requests: list[Query], stored: tuple[Image.Image, ...] = ()) -> list[int]:
    found = in_order(requests, lambda size: size[0] * size[1], lambda one: any(one.request.image is s for s in stored))
    return [one.place for one in found]


def test_by_limit_then_length_then_picture() -> None:
    small, large, twin = Image.new("L", (2, 2)), Image.new("L", (4, 4)), Image.new("L", (2, 2))
    requests = asked([large, small, twin, small, large, twin], [8, 8, 8, 8, 4, 8])
    assert places(requests) == [4, 1, 3, 2, 5, 0]


def test_what_is_stored_comes_before_what_would_push_it_out() -> None:
    pictures = [Image.new("L", (2, 2)) for _ in range(3)]
    assert places(asked(pictures, [8, 8, 8]), stored=(pictures[2],)) == [2, 0, 1]


def test_pictures_of_one_kind_of_processor_are_one_length_when_their_tokens_are() -> None:
    class Resizing:
        merge_size = 2

    by_area, by_shape = length_of(Resizing()), length_of(object())
    assert by_area((100, 50)) < by_area((400, 200))
    assert by_shape((100, 50)) == by_shape((400, 200)) == by_shape((50, 100)) > by_shape((300, 300))
