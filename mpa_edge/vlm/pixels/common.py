"""What all pipelines share: scaling by Pillow, and 256 levels of grey as normalised numbers."""

from __future__ import annotations

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
    """One picture, ready for the model."""

    pixels: Pixels
    """Input name of the vision encoder -> array."""
    expansion: str
    """Text that takes the place of the image placeholder in the prompt."""
    n_image_tokens: int
    """Image tokens in that text: one for each embedding of the vision encoder."""


def scale(image: Image, width: int, height: int, config: dict[str, Any]) -> Image:
    """The picture in another size, by the filter of the image processor."""
    return image.resize((width, height), Resampling(config["resample"]))


def normalized(image: Image, config: dict[str, Any]) -> NDArray[np.float32]:
    """RGB picture -> (3, height, width), rescaled and normalised.

    A channel has 256 values only, so the arithmetic is done once for each of them. Its steps and their precision are
    those of transformers 5.23 (image_transforms.py: rescale in float64, normalize in float32), for the same bits.
    """
    levels = levels_of(config)
    array = np.asarray(image.convert("RGB"))
    return np.stack([levels[channel][array[..., channel]] for channel in range(3)])


def levels_of(config: dict[str, Any]) -> NDArray[np.float32]:
    """(3, 256): what becomes of each byte value in each channel.

    >>> mean_and_std = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    >>> levels_of({"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, **mean_and_std})[0, [0, 255]]
    array([-1.,  1.], dtype=float32)
    """
    level = np.arange(256)
    if config["do_rescale"]:
        level = level * config["rescale_factor"]
    levels = np.stack([level.astype(np.float32)] * 3)
    if not config["do_normalize"]:
        return levels
    mean, std = (np.array(config[key], np.float32)[:, None] for key in ("image_mean", "image_std"))
    return (levels - mean) / std


def tiles(pixels: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """(3, rows * height, columns * width) -> (rows * columns, 3, height, width), row by row."""
    rows, columns = pixels.shape[1] // height, pixels.shape[2] // width
    cut = pixels.reshape(3, rows, height, columns, width).transpose(1, 3, 0, 2, 4)
    return cut.reshape(rows * columns, 3, height, width)
