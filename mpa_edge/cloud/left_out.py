"""What `sky` would leave out of a folder without a word: links, and whatever git ignores there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SKY_IGNORE = ".skyignore"
"""Where a folder has this file, `sky` asks it and not git."""
WHOLE = "./"  # git's word for a folder that is ignored as a whole: then sky takes all of it


def measure(folder: Path) -> tuple[int, Path | None]:
    """Bytes of all files below a folder, and the first link among them: copying programs leave links out."""
    total = 0
    for where, below, names in os.walk(folder):
        for path in (Path(where, name) for name in sorted([*below, *names])):
            if path.is_symlink():
                return total, path
            total += path.stat().st_size if path.is_file() else 0
    return total, None


def ignored(folder: Path) -> list[str]:
    """Files and folders inside a folder that git ignores; empty where sky would not ask git."""
    if (folder / SKY_IGNORE).exists():
        return []
    words = ["git", "-C", str(folder), "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    except OSError:
        return []  # no git here: sky does not find one either
    found = [name for name in done.stdout.split("\0") if name] if done.returncode == 0 else []
    return [] if WHOLE in found else found
