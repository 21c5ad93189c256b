"""What two models are compared by when they should be the same one."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mpa_edge.types import Pixels


def pixels_digest(pixels: Pixels) -> str:
    """Hash of what a vision encoder is given: names, shapes and values of the floating point arrays.

    Values are rounded to 1/1024 of the normalised range first: the same picture through two correct programs may
    differ in the last bit. Masks and grids follow from the shape and are left out.

    >>> pixels_digest({"pixel_values": np.zeros((1, 3), np.float32)})[:8]
    'a5ded4f7'
    """
    digest = hashlib.sha256()
    for name in sorted(name for name, array in pixels.items() if array.dtype.kind == "f"):
        array = np.rint(np.asarray(pixels[name], np.float32) * 1024).astype(np.int32)
        digest.update(f"{name}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
