"""Decoded images within a memory budget: a shard of photographs must not fill the memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from mpa_edge.types import Drop

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS_IN_MEMORY = 128_000_000  # three bytes each
Item = TypeVar("Item")


def groups(
    items: Iterable[Item], opener: Callable[[Item], Image | Drop], budget: int = PIXELS_IN_MEMORY
) -> Iterator[list[tuple[Item, Image | Drop]]]:
    """Items with their opened image, in order, in groups of at most `budget` pixels (or one image).

    The grouping depends on the images alone, so it is the same after a resume.
    """
    group: list[tuple[Item, Image | Drop]] = []
    held = 0
    for item in items:
        image = opener(item)
        pixels = 0 if isinstance(image, Drop) else image.width * image.height
        if group and held + pixels > budget:
            yield group
            group, held = [], 0
        group.append((item, image))
        held += pixels
    if group:
        yield group


class ImageCache:
    """Opened images by name; keeps the most recently used ones up to `budget` pixels."""

    def __init__(self, opener: Callable[[str], Image], budget: int = PIXELS_IN_MEMORY) -> None:
        self._opener, self._budget, self._held = opener, budget, 0
        self._kept: OrderedDict[str, Image] = OrderedDict()

    def __call__(self, name: str) -> Image:
        """The image of a name; raises what the opener raises."""
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        image = self._opener(name)
        self._kept[name] = image
        self._held += image.width * image.height
        while self._held > self._budget and len(self._kept) > 1:
            _, old = self._kept.popitem(last=False)
            self._held -= old.width * old.height
        return image
