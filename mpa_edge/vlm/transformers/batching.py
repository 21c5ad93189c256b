"""In which order requests are answered: together what has one limit, one length and one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mpa_edge.types import Request


@dataclass(frozen=True)
class Query:
    """One request with its prompt in two parts."""

    place: int
    """Of its reply."""
    request: Request
    """Picture, limit, sampling."""
    head: str
    """Text up to and with the picture's token."""
    tail: Sequence[int]
    """Tokens of the text behind it."""

    @property
    def key(self) -> tuple[int, str]:
        """The same for all requests that share a prefix."""
        return id(self.request.image), self.head


def length_of(image_processor: Any) -> Callable[[tuple[int, int]], float]:
    """Function of a picture's (width, height) that puts pictures in the order of the tokens that they become.

    Processors that keep a picture's size (Qwen's) go by its area; the others cut tiles by its shape.

    >>> shape = length_of(object())
    >>> shape((512, 512)) < shape((1024, 512)) == shape((200, 400))
    True
    """
    if hasattr(image_processor, "merge_size"):
        return lambda size: size[0] * size[1]
    return lambda size: max(size) / min(size)


def in_order(
    asked: Sequence[Query], length: Callable[[tuple[int, int]], float], is_stored: Callable[[Query], bool]
) -> list[Query]:
    """Requests by limit of new tokens, then by length of the picture, all about one picture next to each other.

    Pictures whose prefix is stored come first: it is used before new ones push it out.
    """
    first: dict[tuple[int, str], int] = {}
    for one in asked:
        first.setdefault(one.key, one.place)

    def rank(one: Query) -> tuple[int, bool, float, int]:
        return one.request.max_new_tokens, not is_stored(one), length(one.request.image.size), first[one.key]

    return sorted(asked, key=rank)
