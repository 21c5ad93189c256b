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
    """One picture as numbers: (3, height, width)."""
    return numbers(in_bytes(image), config)[0]


def numbers(pictures: NDArray[np.uint8], config: dict[str, Any]) -> NDArray[np.float32]:
    """Bytes (pictures, height, width, 3) -> (pictures, 3, height, width), rescaled and normalised.

    A channel has 256 values only, so the arithmetic is done once for each of them. Its steps and their precision are
    those of transformers 5.23 (image_transforms.py: rescale in float64, normalize in float32), for the same bits.
    """
    n, height, width, _ = pictures.shape
    made = np.empty((n, 3, height, width), np.float32)
    for channel, levels in enumerate(levels_of(config)):
        np.take(levels, pictures[..., channel], out=made[:, channel], mode="clip")
    return made


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


def in_bytes(image: Image) -> NDArray[np.uint8]:
    """A picture as one of a batch: (1, height, width, 3)."""
    return np.asarray(image.convert("RGB"))[None]


def tiles(image: Image, width: int, height: int, config: dict[str, Any], overview: Image) -> NDArray[np.float32]:
    """A picture cut in tiles, row by row, normalised: (tiles, 3, height, width).

    Where there is more than one tile, the whole of `overview` in the size of a tile comes last.
    """
    rows, columns = image.height // height, image.width // width
    cut = in_bytes(image).reshape(rows, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    if len(cut) > 1:
        cut = np.concatenate([cut, in_bytes(scale(overview, width, height, config))])
    return numbers(cut, config)
