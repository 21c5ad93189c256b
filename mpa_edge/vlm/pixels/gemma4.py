"""Gemma 4: the image keeps about its shape, in whole groups of patches, as large as its number of tokens allows.

Source of the steps: transformers 5.23, models/gemma4/image_processing_pil_gemma4.py and processing_gemma4.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_edge.errors import MpaError
from mpa_edge.vlm.pixels.common import Prepared, in_bytes, normalized, scale

if TYPE_CHECKING:
    from PIL.Image import Image


def prepare(config: dict[str, Any], image: Image) -> Prepared:
    """pixel_values f32 (1, patches, 3 * edge * edge) and pixel_position_ids i64 (1, patches, 2) of column and row.

    Both are padded to the most patches of an image, with zeros and with -1.
    """
    edge, group = config["patch_size"], config["pooling_kernel_size"] ** 2
    pixels = normalized(in_bytes(resized(config, image)), config)[0]
    rows, columns = pixels.shape[1] // edge, pixels.shape[2] // edge
    cut = pixels.reshape(3, rows, edge, columns, edge).transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1)
    row, column = np.indices((rows, columns))
    places = np.stack([column, row], -1).reshape(-1, 2).astype(np.int64)
    missing = ((0, config["max_soft_tokens"] * group - len(cut)), (0, 0))
    tokens = config["image_token"] * (len(cut) // group)
    arrays = {
        "pixel_values": np.pad(cut, missing)[None],
        "pixel_position_ids": np.pad(places, missing, constant_values=-1)[None],
    }
    return Prepared(arrays, config["boi_token"] + tokens + config["eoi_token"])


def resized(config: dict[str, Any], image: Image) -> Image:
    """The image scaled to whole groups of patches."""
    if not config["do_resize"]:
        return image
    step = config["patch_size"] * config["pooling_kernel_size"]
    width, height = scaled_size(image.width, image.height, step, config["max_soft_tokens"])
    return image if (width, height) == image.size else scale(image, width, height, config)


def scaled_size(width: int, height: int, step: int, most: int) -> tuple[int, int]:
    """(width, height) in multiples of `step`, close to the image's shape, of at most `most` groups of patches.

    Raises MpaError for an image that is too narrow for its groups.

    >>> scaled_size(640, 480, 48, 280), scaled_size(10, 10, 48, 70), scaled_size(9000, 30, 48, 70)
    ((912, 672), (384, 384), (3360, 48))
    """
    factor = math.sqrt(most * step**2 / (width * height))
    columns, rows = math.floor(factor * width / step), math.floor(factor * height / step)
    if rows == 0:
        rows, columns = 1, min(width // height, most)
    elif columns == 0:
        rows, columns = min(height // width, most), 1
    if rows * columns > most:
        raise MpaError(f"an image of {width} x {height} does not fit this model: crop it or leave it out")
    return columns * step, rows * step
