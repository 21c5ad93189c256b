"""A million pictures that take no room: names that are links to a few drawings; for scale.py.

Each drawing has up to 20,000 names (hard links; file systems allow 65,000). The walk over the folder, the look at each
file, opening and decoding are those of a million files. Only hashing is not: the list of the earlier scan that a run
folder keeps is written beforehand, with an id for each name, as it is there when a run goes on. What hashing takes is
measured by the first start of `--small/--large`, whose pictures are files of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from PIL import Image

WIDTH = 8
NAMES_A_DRAWING = 20_000
FEWEST_DRAWINGS = 50
IN_A_FOLDER = 1000


def draw(folder: Path, n: int) -> None:
    """n pictures, each with its number in its first pixel: files of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        _drawing(folder / f"{i:07d}.png", i)


def _drawing(path: Path, number: int) -> None:
    image = Image.new("RGB", (WIDTH, WIDTH))
    image.putpixel((0, 0), (number % 256, number // 256 % 256, number // 65536))
    image.save(path, compress_level=0)


def link(folder: Path, n: int) -> None:
    """n names below `folder`, 1,000 in each folder; what is there already is kept."""
    drawings = folder.parent / "drawings"
    drawings.mkdir(parents=True, exist_ok=True)
    kinds = max(FEWEST_DRAWINGS, -(-n // NAMES_A_DRAWING))
    for i in range(kinds):
        if not (drawings / f"{i}.png").is_file():
            _drawing(drawings / f"{i}.png", i)
    for first in range(0, n, IN_A_FOLDER):
        below = folder / f"{first // IN_A_FOLDER:05d}"
        below.mkdir(parents=True, exist_ok=True)
        for i in range(first, min(first + IN_A_FOLDER, n)):
            name = below / f"{i:08d}.png"
            if not name.exists():
                os.link(drawings / f"{i % kinds}.png", name)


def remember(folder: Path, list_path: Path, n: int) -> None:
    """The list that a scan of all these names would have left, each with a content of its own."""
    list_path.parent.mkdir(parents=True, exist_ok=True)
    with list_path.open("w", encoding="utf-8") as file:
        for i in range(n):
            name = f"{i // IN_A_FOLDER:05d}/{i:08d}.png"
            status = os.stat(folder / name)
            digest = hashlib.sha256(name.encode()).hexdigest()[:16]
            mark = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            file.write(json.dumps([name, digest, *mark]) + "\n")
