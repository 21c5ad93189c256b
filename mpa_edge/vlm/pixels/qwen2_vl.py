"""Qwen2-VL, 2.5 and 3: the image keeps its shape, in whole groups of patches, within a number of pixels.

Source of the steps: transformers 5.23, models/qwen2_vl/image_processing_pil_qwen2_vl.py and processing_qwen2_vl.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_edge.errors import MpaError
from mpa_edge.vlm.pixels.common import Prepared, in_bytes, normalized, scale

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from mpa_edge.types import Pixels

MAX_RATIO = 200
GRID = {"qwen2_vl": "grid_thw", "qwen2_5_vl": "image_grid_thw", "qwen3_vl": "image_grid_thw"}
"""The vision encoders call the same input by different names."""


def prepare(config: dict[str, Any], image: Image) -> Prepared:
    """pixel_values f32 (patches, 3 * frames * edge * edge) and the grid i64 (1, 3) of frames, rows, columns."""
    values, rows, columns = patches(normalized(in_bytes(resized(config, image)), config)[0], config)
    n_image_tokens = rows * columns // config["merge_size"] ** 2
    pixels: Pixels = {"pixel_values": values, GRID[config["kind"]]: np.array([[1, rows, columns]], np.int64)}
    return Prepared(pixels, config["image_token"] * n_image_tokens)


def resized(config: dict[str, Any], image: Image) -> Image:
    """The image scaled to whole groups of merge_size x merge_size patches."""
    if not config["do_resize"]:
        return image
    step, size = config["patch_size"] * config["merge_size"], config["size"]
    width, height = scaled_size(image.width, image.height, step, size["shortest_edge"], size["longest_edge"])
    return scale(image, width, height, config)


def scaled_size(width: int, height: int, step: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(width, height) in multiples of `step`, between the two numbers of pixels, close to the image's shape.

    Raises MpaError for an image that is over 200 times as long as it is wide.

    >>> scaled_size(640, 480, 28, 1, 50176), scaled_size(10, 10, 28, 3136, 50176), scaled_size(300, 200, 28, 1, 10**6)
    ((252, 168), (56, 56), (308, 196))
    """
    if max(width, height) > MAX_RATIO * min(width, height):
        raise MpaError(f"an image of {width} x {height} is too narrow for this model: crop it or leave it out")
    near = round(width / step) * step, round(height / step) * step
    if near[0] * near[1] > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        width, height = (max(step, math.floor(edge / shrink / step) * step) for edge in (width, height))
        return width, height
    if near[0] * near[1] < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        width, height = (math.ceil(edge * grow / step) * step for edge in (width, height))
        return width, height
    return near


def patches(pixels: NDArray[np.float32], config: dict[str, Any]) -> tuple[NDArray[np.float32], int, int]:
    """(3, height, width) -> (patches, 3 * frames * edge * edge), rows, columns. Patches of one group are neighbours."""
    edge, merge, frames = config["patch_size"], config["merge_size"], config["temporal_patch_size"]
    rows, columns = pixels.shape[1] // edge, pixels.shape[2] // edge
    cut = pixels.reshape(3, rows // merge, merge, edge, columns // merge, merge, edge)
    cut = cut.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    repeated = np.broadcast_to(cut, (*cut.shape[:5], frames, edge, edge))
    return repeated.reshape(rows * columns, 3 * frames * edge * edge), rows, columns
