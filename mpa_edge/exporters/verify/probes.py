"""The pictures and questions of the parity check: drawn here, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mpa_edge.types import Request

MAX_NEW_TOKENS = 8
GREY = (128, 128, 128)
LONG, SHORT = 256, 64
VERSION = 1
"""Of everything here: a stored reference of another version is made again."""


@dataclass(frozen=True)
class Probes:
    """What both models are asked."""

    batches: tuple[tuple[Request, ...], ...]
    """Each is one batch: two pictures alone, then two of other sizes with questions of other lengths."""
    blanks: tuple[tuple[int, Request], ...]
    """Greyed probes, each with the index of its coloured one (counted through all batches)."""

    @property
    def requests(self) -> tuple[Request, ...]:
        """All coloured probes in order."""
        return tuple(request for batch in self.batches for request in batch)


def probes(image: dict[str, Any], prompt: Callable[[str], str], image_token: str) -> Probes:
    """Probes for an image processor with these values.

    Three sizes: a wide and a tall one, cheap for models that cut a picture in tiles, and one of two rows of tiles.
    `prompt` puts a question as the run asks it; one question tries to smuggle in an image token, as a user might.
    """
    wide, tall = drawn(LONG, SHORT, seed=1), drawn(SHORT, LONG, seed=2)
    middle = drawn(*two_rows(image), seed=3)
    short = prompt("What is shown?")
    longer = prompt(f"How many red{image_token} shapes are there, and is the largest one left of 3 o'clock?")
    ask = [Request(wide, longer), Request(middle, short), Request(wide, short), Request(tall, longer)]
    grey = Request(Image.new("RGB", wide.size, GREY), longer)
    first, second, *pair = (_short(request) for request in ask)
    return Probes(batches=((first,), (second,), tuple(pair)), blanks=((0, _short(grey)),))


def _short(request: Request) -> Request:
    return Request(request.image, request.prompt, MAX_NEW_TOKENS)


def two_rows(image: dict[str, Any]) -> tuple[int, int]:
    """Width and height that become two rows of tiles where pictures are cut up: every tile costs seconds.

    >>> two_rows({"max_image_size": {"longest_edge": 512}, "size": {"longest_edge": 2048}})
    (256, 128)
    >>> two_rows({"size": {"height": 112, "width": 112}})
    (192, 128)
    """
    if "max_image_size" not in image:
        return 192, 128
    tiles = image["size"]["longest_edge"] // image["max_image_size"]["longest_edge"]
    return 64 * max(tiles, 2), 128


def drawn(width: int, height: int, seed: int) -> Image.Image:
    """A coloured picture with edges of every direction: mirrored, turned, blurred or recoloured it is another one."""
    x, y = np.linspace(0, 1, width)[None], np.linspace(0, 1, height)[:, None]
    ramps = (200 * x + 0 * y, 180 * y + 40 * x, 220 - 160 * x * y - 40 * y)
    picture = Image.fromarray(np.stack(ramps, -1).astype(np.uint8), "RGB")
    draw = ImageDraw.Draw(picture)
    step = 5 + seed
    for i in range(0, width, 2 * step):
        draw.line((i, 0, i + height // 3, height), fill=(10 * seed, 250 - i % 200, 90), width=1 + i % 3)
    random = np.random.Generator(np.random.PCG64(seed))
    for red, green, blue, left, top in random.integers(0, 256, (6, 5)).tolist():
        corner = (left * width // 300, top * height // 300)
        size = min(width, height) // 4
        draw.ellipse((*corner, corner[0] + 2 * size, corner[1] + size), fill=(red, green // 2, blue), outline="white")
    draw.rectangle((width * 2 // 3, 2, width - 3, height // 3), fill=(230, 30, 20), outline="black")
    return picture
