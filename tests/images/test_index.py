"""The packed list of images says what a plain list of entries would."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_edge.images.index import DUPLICATE, ImageEntry, ImageIndex, Shards
from mpa_edge.types import Drop

ROOT = Path("somewhere")


def entry(name: str, content: str | None = None, drop: Drop | None = None) -> ImageEntry:
    return ImageEntry(hashlib.sha256((content or name).encode()).hexdigest()[:16], name, ROOT, drop)


NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True)


@given(NAMES)
def test_it_is_the_list_that_went_in(names: list[str]) -> None:
    plain = [entry(name) for name in names]
    packed = ImageIndex(ROOT, plain)
    assert list(packed) == plain == packed[:] == [packed[i] for i in range(len(plain))]
    assert packed.sorted_by() == sorted(plain, key=lambda one: one.name)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_duplicates_are_those_that_a_plain_loop_finds(made: list[tuple[str, bool]]) -> None:
    broken = Drop("empty file")
    plain = [entry(f"{i}", content, broken if bad else None) for i, (content, bad) in enumerate(made)]
    packed = ImageIndex(ROOT, plain)
    packed.mark_duplicates()
    first: dict[str, str] = {}
    for given_one, found in zip(plain, packed, strict=True):
        again = given_one.drop is None and first.setdefault(given_one.id, given_one.name) != given_one.name
        expected = Drop(DUPLICATE, f"same content as {first[given_one.id]}") if again else given_one.drop
        assert found.drop == expected


@pytest.mark.parametrize(("n", "size", "groups"), [(0, 3, 0), (3, 3, 1), (7, 3, 3)])
def test_shards(n: int, size: int, groups: int) -> None:
    plain = [entry(str(i)) for i in range(n)]
    shards = Shards(ImageIndex(ROOT, plain), size)
    assert len(shards) == groups
    assert [one for shard in shards for one in shard] == plain
    assert [shards.size_of(i) for i in range(groups)] == [len(shard) for shard in shards]
    with pytest.raises(IndexError):
        shards[groups]


def test_a_picture_takes_few_bytes() -> None:
    n = 10_000
    packed = ImageIndex(ROOT, (entry(f"folder/{i:08d}.png") for i in range(n)))
    held = sum(sys.getsizeof(part) for part in (packed._names, packed._ends, packed._ids))
    assert held < 50 * n
