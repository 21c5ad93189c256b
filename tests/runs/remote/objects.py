"""Objects behind a URL, as the tests look at them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpa_edge.runs.remote.stores import Store, Stored


def listing(url: str) -> dict[str, Stored]:
    return Store(url).listing()


def upload(url: str, folder: Path, names: Sequence[str]) -> None:
    assert Store(url).put(folder, names).keys() == set(names)


def download(url: str, folder: Path, names: Sequence[str]) -> None:
    Store(url).get(folder, names)
