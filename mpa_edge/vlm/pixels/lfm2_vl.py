"""LFM2-VL: small images whole, in their own shape; large ones in the grid of tiles closest to it, and an overview.

Source of the steps: transformers 5.23, models/lfm2_vl/image_processing_lfm2_vl.py and processing_lfm2_vl.py. That image
processor has no Pillow backend; `scaled` gives the same bits as torchvision's resize of 8-bit images with antialias.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_edge.vlm.pixels.common import Prepared, in_bytes
from mpa_edge.vlm.pixels.internvl import closest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

LARGEST_WEIGHT = 1 << 15
"""Weights of torchvision's filter are 16-bit integers."""


def prepare(config: dict[str, Any], image: Image) -> Prepared:
    """pixel_values f32 (tiles, patches, values of a patch), pixel_attention_mask and spatial_shapes i64.

    Patches of smaller tiles are padded with zeros; shapes are rows and columns of patches.
    """
    cut, patch = tiles(config, image), config["encoder_patch_size"]
    levels = normalized_levels(config)
    in_patches = [patches(levels[tile, np.arange(3)], patch) for tile in cut]
    n_most = config["max_image_tokens"] * config["downsample_factor"] ** 2
    if config["do_image_splitting"]:
        n_most = max(n_most, (config["tile_size"] // patch) ** 2)
    values = np.zeros((len(cut), n_most, in_patches[0].shape[1]), np.float32)
    mask = np.zeros((len(cut), n_most), np.int64)
    for row, found in enumerate(in_patches):
        values[row, : len(found)], mask[row, : len(found)] = found, 1
    shapes = np.array([(tile.shape[0] // patch, tile.shape[1] // patch) for tile in cut], np.int64)
    pixels = {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": shapes}
    return Prepared(pixels, expansion(config, image))


def tiles(config: dict[str, Any], image: Image) -> list[NDArray[np.uint8]]:
    """(height, width, 3) of each tile, row by row, then the overview; of a small image the overview alone."""
    data = in_bytes(image)[0]
    overview = scaled(data, *overview_size(config, image.width, image.height))
    columns, rows = layout(config, image.width, image.height)
    if rows * columns == 1:
        return [overview]
    edge = config["tile_size"]
    whole = scaled(data, columns * edge, rows * edge).reshape(rows, edge, columns, edge, 3)
    cut = list(whole.swapaxes(1, 2).reshape(-1, edge, edge, 3))
    return [*cut, overview] if config["use_thumbnail"] else cut


def expansion(config: dict[str, Any], image: Image) -> str:
    """Tiles with their row and column, then the overview, between the tokens of an image's start and end."""
    columns, rows = layout(config, image.width, image.height)
    token, factor = config["image_token"], config["downsample_factor"] * config["encoder_patch_size"]
    width, height = overview_size(config, image.width, image.height)
    text = token * ((width // factor) * (height // factor))
    if rows * columns > 1:
        edge = config["tile_size"] // config["encoder_patch_size"]
        of_tile = token * math.ceil(edge / config["downsample_factor"]) ** 2
        places = [f"<|img_row_{r}_col_{c}|>" for r in range(1, rows + 1) for c in range(1, columns + 1)]
        text = config["image_thumbnail_token"] + text if config["use_thumbnail"] else ""
        text = "".join(place + of_tile for place in places) + text
    return str(config["image_start_token"] + text + config["image_end_token"])


def layout(config: dict[str, Any], width: int, height: int) -> tuple[int, int]:
    """(columns, rows) of tiles: one unless the image is larger than the overview may be, by a tolerance."""
    patch, most_tiles = config["encoder_patch_size"], config["max_tiles"]
    factor = patch * config["downsample_factor"]
    area = math.prod(max(patch, round(edge / factor) * factor) for edge in (width, height))
    most_pixels = config["max_image_tokens"] * factor**2 * config["max_pixels_tolerance"]
    if area <= most_pixels or not config["do_image_splitting"] or most_tiles == 1:
        return 1, 1
    counts = range(config["min_tiles"], most_tiles + 1)
    # a set, as there: of two grids with as many tiles that are equally close, its order decides
    known = {(w, h) for n in counts for w in range(1, n + 1) for h in range(1, n + 1) if w * h in counts}
    return closest(known, width, height, config["tile_size"] ** 2)


def overview_size(config: dict[str, Any], width: int, height: int) -> tuple[int, int]:
    """(width, height) in whole tokens, with the image's shape and no fewer and no more tokens than allowed.

    >>> config = {"encoder_patch_size": 16, "downsample_factor": 2, "min_image_tokens": 64, "max_image_tokens": 256}
    >>> overview_size(config, 640, 480), overview_size(config, 100, 50), overview_size(config, 2000, 1000)
    ((576, 416), (384, 192), (704, 352))
    """
    factor = config["encoder_patch_size"] * config["downsample_factor"]
    wide, high = (max(factor, round(edge / factor) * factor) for edge in (width, height))
    fewest, most = config["min_image_tokens"] * factor**2, config["max_image_tokens"] * factor**2
    if wide * high > most:
        shrink = math.sqrt(width * height / most)
        wide, high = (max(factor, math.floor(edge / shrink / factor) * factor) for edge in (width, height))
    elif wide * high < fewest:
        stretch = math.sqrt(fewest / (width * height))
        wide, high = (math.ceil(edge * stretch / factor) * factor for edge in (width, height))
    return wide, high


def normalized_levels(config: dict[str, Any]) -> NDArray[np.float32]:
    """(256, 3): what becomes of each value of a channel. Rescaled and normalized in one step, as torchvision does."""
    step = 1 / config["rescale_factor"] if config["do_rescale"] else 1.0
    levels = np.repeat(np.arange(256, dtype=np.float32)[:, None], 3, axis=1)
    if not config["do_normalize"]:
        return levels / np.float32(step)
    mean, std = (np.array(config[key], np.float32) * np.float32(step) for key in ("image_mean", "image_std"))
    normal: NDArray[np.float32] = (levels - mean) / std
    return normal


def patches(tile: NDArray[np.float32], edge: int) -> NDArray[np.float32]:
    """(height, width, 3) -> (patches, edge x edge x 3), row by row."""
    height, width, _ = tile.shape
    return tile.reshape(height // edge, edge, width // edge, edge, 3).swapaxes(1, 2).reshape(-1, edge * edge * 3)


def scaled(data: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """(height, width, 3) in another size: first along its rows, then along its columns."""
    return along(along(data.swapaxes(0, 1), width).swapaxes(0, 1), height)


def along(data: NDArray[np.uint8], n_out: int) -> NDArray[np.uint8]:
    """Scale the first axis with a triangular filter whose weights are 16-bit integers.

    Source: PyTorch, aten/src/ATen/native/cpu/UpSampleKernel.cpp. Sums stay below 2^31.
    """
    n_in = len(data)
    if n_in == n_out:
        return data
    scale = n_in / n_out
    support = max(scale, 1.0)
    center = scale * (np.arange(n_out) + 0.5)
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    last = np.minimum((center + support + 0.5).astype(np.int64), n_in)
    taps = np.arange((last - first).max())
    place = first[:, None] + taps
    # each step in their order: another rounding of a weight would show as one level of one pixel
    weight = 1 - np.abs((taps + (first - center)[:, None] + 0.5) * (1 / support))
    weight = np.where(place < last[:, None], np.maximum(0.0, weight), 0.0)
    weight /= np.cumsum(weight, 1)[:, -1:]
    bits = 0
    while int(0.5 + weight.max() * (2 << bits)) < LARGEST_WEIGHT:
        bits += 1
    whole = np.floor(weight * (1 << bits) + 0.5).astype(np.int32)
    place = np.minimum(place, n_in - 1)
    total = np.full((n_out, *data.shape[1:]), 1 << bits >> 1, np.int32)
    for tap in range(place.shape[1]):
        total += whole[:, tap, None, None] * data[place[:, tap]]
    return (total >> bits).clip(0, 255).astype(np.uint8)
