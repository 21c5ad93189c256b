"""Decoded images stay within a budget of pixels."""

from __future__ import annotations

from PIL import Image

from mpa_edge.images.cache import ImageCache, groups
from mpa_edge.types import Drop


def test_groups_fit_the_budget() -> None:
    sizes = {"a": 10, "b": 10, "c": 25, "d": 1, "e": 10}

    def opener(name: str):
        return Drop("broken") if name == "d" else Image.new("RGB", (sizes[name], 1))

    found = [[name for name, _ in group] for group in groups(sizes, opener, 20)]
    assert found == [["a", "b"], ["c"], ["d", "e"]]
    assert [len(group) for group in groups(sizes, opener, 1000)] == [5]
    assert list(groups([], opener)) == []


def test_groups_open_one_after_another() -> None:
    opened: list[int] = []

    def opener(number: int):
        opened.append(number)
        return Image.new("RGB", (10, 1))

    first = next(groups(range(100), opener, 30))
    assert len(first) == 3
    assert len(opened) == 4


def test_the_cache_forgets_the_oldest() -> None:
    opened: list[str] = []

    def opener(name: str) -> Image.Image:
        opened.append(name)
        return Image.new("RGB", (10, 1))

    cache = ImageCache(opener, budget=20)
    for name in "abacab":
        cache(name)
    assert "".join(opened) == "abcb"
