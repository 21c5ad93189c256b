"""Who wants to know that a run folder has something new: whoever copies it elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Watcher = Callable[[Path, bool], None]
WATCHERS: list[Watcher] = []


def tell(folder: Path, settled: bool = False) -> None:
    """Something below `folder` was written; `settled`: nothing goes on before everybody has taken it in.

    What a watcher raises ends the stage.
    """
    for watcher in WATCHERS:
        watcher(folder, settled)
