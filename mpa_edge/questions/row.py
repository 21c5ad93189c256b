"""One row of a published file, before anybody checked it, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpa_edge.types import Drop


@dataclass(frozen=True)
class Row:
    """What a benchmark's reader takes from one row."""

    question: Any
    """As it stands in the file."""
    answers: Any
    """A text, a number, a list of those, or a list of {"answer": text}."""
    image: str = ""
    """Where the picture lies, below one of the benchmark's image folders; empty where it is in the row itself."""
    id: Any = None
    """The file's own id of the question; None where it has none."""
    kind: str | None = None
    """Question kind, where the benchmark has one."""


def text_of(value: Any) -> str:
    """A value as text: numbers as JSON writes them, None as nothing.

    >>> text_of(" What?\\n"), text_of(14), text_of(0.57), text_of(None), text_of(True)
    ('What?', '14', '0.57', '', 'True')
    """
    return "" if value is None else str(value).strip()


def answers_of(value: Any) -> tuple[str, ...] | Drop:
    """Every accepted answer, in order and with repetitions (VQA accuracy counts them), or why there is none.

    Blanks at the ends stay: the metrics have their own rules for them.

    >>> answers_of("14"), answers_of(["a", "a"]), answers_of([{"answer": "race", "raw_answer": "racing"}])
    (('14',), ('a', 'a'), ('race',))
    >>> answers_of(14), answers_of([""] * 10), answers_of(None)
    (('14',), Drop(reason='no answers', detail=''), Drop(reason='no answers', detail=''))
    """
    listed = value if isinstance(value, list | tuple) else [value]
    plain = [item.get("answer") if isinstance(item, Mapping) else item for item in listed]
    if not all(isinstance(item, str | int | float) for item in plain) or not any(text_of(item) for item in plain):
        return Drop("no answers")
    return tuple(item if isinstance(item, str) else text_of(item) for item in plain)


def unique(ids: list[str]) -> list[str]:
    """Ids of which none is there twice: a repeated one gets the number of its appearance.

    >>> unique(["7", "8", "7", "7#2", "7"])
    ['7', '8', '7#2', '7#2#2', '7#3']
    """
    seen: dict[str, int] = {}
    taken: set[str] = set()
    result = []
    for name in ids:
        new = name
        while new in taken:
            seen[name] = seen.get(name, 1) + 1
            new = f"{name}#{seen[name]}"
        taken.add(new)
        result.append(new)
    return result
