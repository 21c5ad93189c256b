"""What all pipelines share: scaling by Pillow, bytes to normalised numbers, tiles."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Resampling

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from mpa_edge.types import Pixels


@dataclass(frozen=True)
class Prepared:
    """One image, ready for the model."""

    pixels: Pixels
    """Input name of the vision encoder -> array."""
    expansion: str
    """Text that takes the place of the image placeholder in the prompt."""


def scale(image: Image, width: int, height: int, config: dict[str, Any]) -> Image:
    """The image in another size, by the filter of the image processor."""
    return image.resize((width, height), Resampling(config["resample"]))


def in_bytes(image: Image) -> NDArray[np.uint8]:
    """An image as a batch of one: (1, height, width, 3)."""
    return np.asarray(image.convert("RGB"))[None]


def normalized(images: NDArray[np.uint8], config: dict[str, Any]) -> NDArray[np.float32]:
    """Bytes (images, height, width, 3) -> (images, 3, height, width), rescaled and normalised.

    A channel has only 256 values, so the arithmetic is done once for each of them. Its steps and their precision are
    those of transformers 5.23 (image_transforms.py: rescale in float64, normalize in float32), for the same bits.

    >>> config = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    >>> config |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    >>> normalized(np.array([[[[0, 255, 0]]]], np.uint8), config).ravel()
    array([-1.,  1., -1.], dtype=float32)
    """
    values = np.arange(256)
    if config["do_rescale"]:
        values = values * config["rescale_factor"]
    levels = np.stack([values.astype(np.float32)] * 3)
    if config["do_normalize"]:
        mean, std = (np.array(config[key], np.float32)[:, None] for key in ("image_mean", "image_std"))
        levels = (levels - mean) / std
    n, height, width, _ = images.shape
    numbers = np.empty((n, 3, height, width), np.float32)
    for channel in range(3):
        np.take(levels[channel], images[..., channel], out=numbers[:, channel], mode="clip")
    return numbers


def tiles(image: Image, width: int, height: int, config: dict[str, Any], overview: Image) -> NDArray[np.float32]:
    """An image cut into tiles, row by row, normalised: (tiles, 3, height, width).

    If there is more than one tile, `overview` scaled to the size of a tile comes last.
    """
    rows, columns = image.height // height, image.width // width
    cut = in_bytes(image).reshape(rows, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    if len(cut) > 1:
        cut = np.concatenate([cut, in_bytes(scale(overview, width, height, config))])
    return normalized(cut, config)


def pixels_digest(pixels: Pixels) -> str:
    """Hash of a vision encoder's input: names, shapes and values of the floating point arrays.

    Values are rounded to 1/1024 of the normalised range first: one image through two correct programs may differ in
    the last bit. Masks and grids follow from the shape and are left out.

    >>> pixels_digest({"pixel_values": np.zeros((1, 3), np.float32)})[:8]
    'a5ded4f7'
    """
    digest = hashlib.sha256()
    for name in sorted(name for name, array in pixels.items() if array.dtype.kind == "f"):
        array = np.rint(np.asarray(pixels[name], np.float32) * 1024).astype(np.int32)
        digest.update(f"{name}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
