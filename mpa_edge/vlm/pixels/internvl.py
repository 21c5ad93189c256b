"""InternVL: the grid of tiles closest to the image's shape, with a small overview as the last tile.

Source of the steps: transformers 5.23, models/got_ocr2/image_processing_pil_got_ocr2.py and
models/internvl/processing_internvl.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mpa_edge.vlm.pixels.common import Prepared, scale, tiles

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL.Image import Image


def prepare(config: dict[str, Any], image: Image) -> Prepared:
    """pixel_values f32 (tiles, 3, H, W)."""
    size = config["size"]
    cut = tiles(resized(config, image), size["width"], size["height"], config, overview=image)
    return Prepared({"pixel_values": cut}, expansion(config, image))


def expansion(config: dict[str, Any], image: Image) -> str:
    """The tokens of all tiles between those of an image's start and end."""
    columns, rows = layout(config, image)
    tiles = columns * rows + (columns * rows > 1)
    tokens = config["image_token"] * (tiles * config["image_seq_length"])
    return str(config["start_image_token"] + tokens + config["end_image_token"])


def resized(config: dict[str, Any], image: Image) -> Image:
    """The image stretched over its grid of tiles."""
    columns, rows = layout(config, image)
    return scale(image, columns * config["size"]["width"], rows * config["size"]["height"], config)


def layout(config: dict[str, Any], image: Image) -> tuple[int, int]:
    """(columns, rows) of tiles."""
    if not config["crop_to_patches"] or config["max_patches"] < 2:
        return 1, 1
    area = config["size"]["width"] * config["size"]["height"]
    return grid(image.width, image.height, area, config["min_patches"], config["max_patches"])


def grid(width: int, height: int, tile_area: int, min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """(columns, rows) closest to the image's shape; of equally close ones the larger, up to twice the image's area.

    >>> grid(640, 480, 448 * 448, 1, 12), grid(2000, 500, 448 * 448, 1, 12), grid(40, 40, 448 * 448, 1, 12)
    ((4, 3), (4, 1), (1, 1))
    """
    edges = range(1, max_tiles + 1)
    known = [(columns, rows) for columns in edges for rows in edges if min_tiles <= columns * rows <= max_tiles]
    return closest(known, width, height, tile_area)


def closest(grids: Iterable[tuple[int, int]], width: int, height: int, tile_area: int) -> tuple[int, int]:
    """The grid, (columns, rows), closest to the image's shape, with the rule of `grid` for equally close ones."""
    best, smallest = (1, 1), math.inf
    for columns, rows in sorted(grids, key=math.prod):
        gap = abs(width / height - columns / rows)
        if gap < smallest or (gap == smallest and width * height > 0.5 * tile_area * columns * rows):
            best, smallest = (columns, rows), gap
    return best
