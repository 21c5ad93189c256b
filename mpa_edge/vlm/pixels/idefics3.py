"""Idefics3 and SmolVLM: scaled to whole tiles, cut, with a small overview as the last tile.

Source of the steps: transformers 5.23, models/idefics3/image_processing_pil_idefics3.py and processing_idefics3.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_edge.vlm.pixels.common import Prepared, scale, tiles

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_EDGE_PX = 4096
"""Whatever the configuration says, no image is scaled beyond this."""


def prepare(config: dict[str, Any], image: Image) -> Prepared:
    """pixel_values f32 (1, tiles, 3, H, W) and pixel_attention_mask bool (1, tiles, H, W)."""
    whole, edge = resized(config, image), tile_px(config)
    rows, columns = whole.height // edge, whole.width // edge
    cut = tiles(whole, edge, edge, config, overview=whole)
    pixels = {"pixel_values": cut[None], "pixel_attention_mask": np.ones((1, len(cut), edge, edge), np.bool_)}
    return Prepared(pixels, expansion(config, rows, columns))


def resized(config: dict[str, Any], image: Image) -> Image:
    """The image scaled to whole tiles: first the longest edge is set, then both edges are rounded up."""
    edge = tile_px(config)
    if config["do_resize"]:
        image = scale(image, *scaled_size(image.width, image.height, config["size"]["longest_edge"]), config)
    if not config["do_image_splitting"]:
        return scale(image, edge, edge, config)
    return scale(image, *whole_tiles(image.width, image.height, edge), config)


def tile_px(config: dict[str, Any]) -> int:
    """Edge of a square tile."""
    return int(config["max_image_size"]["longest_edge"])


def scaled_size(width: int, height: int, longest_edge: int) -> tuple[int, int]:
    """(width, height) with the given longest edge, the other one even.

    >>> scaled_size(300, 100, 128), scaled_size(1, 1000, 128), scaled_size(100, 100, 5000)
    ((128, 42), (1, 128), (4096, 4096))
    """
    ratio = width / height
    if width >= height:
        width, height = longest_edge, int(longest_edge / ratio)
        height += height % 2
    else:
        width, height = int(longest_edge * ratio), longest_edge
        width += width % 2
    width, height = max(width, 1), max(height, 1)
    ratio = width / height
    if width >= height and width > LONGEST_EDGE_PX:
        width, height = LONGEST_EDGE_PX, int(LONGEST_EDGE_PX / ratio)
    elif height > width and height > LONGEST_EDGE_PX:
        width, height = int(LONGEST_EDGE_PX * ratio), LONGEST_EDGE_PX
    return max(width, 1), max(height, 1)


def whole_tiles(width: int, height: int, edge: int) -> tuple[int, int]:
    """(width, height) rounded up to multiples of the tile's edge; the shorter one keeps the ratio.

    >>> whole_tiles(128, 42, 64), whole_tiles(100, 90, 64)
    ((128, 64), (128, 128))
    """
    ratio = width / height
    if width >= height:
        width = _up(width, edge)
        return width, _up(int(width / ratio), edge)
    height = _up(height, edge)
    return _up(int(height * ratio), edge), height


def expansion(config: dict[str, Any], rows: int, columns: int) -> str:
    """Tiles with their row and column, one row of tiles a line; then the overview. One tile is its own overview."""
    fake, tokens = config["fake_image_token"], config["image_token"] * config["image_seq_len"]
    overview = fake + config["global_image_token"] + tokens + fake
    if rows * columns == 1:
        return overview
    lines = ["".join(f"{fake}<row_{r}_col_{c}>{tokens}" for c in range(1, columns + 1)) for r in range(1, rows + 1)]
    return "\n".join([*lines, "", overview])


def _up(n: int, step: int) -> int:
    return math.ceil(n / step) * step
