"""Images and questions of the parity check: drawn here, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mpa_edge.types import Request

MAX_NEW_TOKENS = 8
GRAY = (128, 128, 128)
LONG, SHORT = 256, 64


def probes(image: dict[str, Any], prompt: Callable[[str], str], image_token: str) -> list[list[Request]]:
    """Probes for an image processor with these values, in batches; the last is the first one with a gray image.

    Two images are asked about alone, two as a batch with other sizes and questions of different length. A wide and a
    tall image are cheap for models that split an image into tiles; the third one has two rows of tiles.
    `prompt` adds what the run adds to each question; one question contains the image token, as a user's might.
    """
    wide, tall = drawn(LONG, SHORT, seed=1), drawn(SHORT, LONG, seed=2)
    middle = drawn(*two_rows(image), seed=3)
    short = prompt("What is shown?")
    longer = prompt(f"How many red{image_token} shapes are there, and is the largest one left of 3 o'clock?")
    gray = Image.new("RGB", wide.size, GRAY)
    first, second, third, fourth, blank = (
        Request(each, question, MAX_NEW_TOKENS)
        for each, question in ((wide, longer), (middle, short), (wide, short), (tall, longer), (gray, longer))
    )
    return [[first], [second], [third, fourth], [blank]]


def two_rows(image: dict[str, Any]) -> tuple[int, int]:
    """Width and height that become two rows of tiles where images are split: every tile costs seconds.

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
    """A colored image with edges in every direction: mirrored, rotated, blurred or recolored it is a different one."""
    x, y = np.linspace(0, 1, width)[None], np.linspace(0, 1, height)[:, None]
    ramps = (200 * x + 0 * y, 180 * y + 40 * x, 220 - 160 * x * y - 40 * y)
    image = Image.fromarray(np.stack(ramps, -1).astype(np.uint8), "RGB")
    draw = ImageDraw.Draw(image)
    step = 5 + seed
    for i in range(0, width, 2 * step):
        draw.line((i, 0, i + height // 3, height), fill=(10 * seed, 250 - i % 200, 90), width=1 + i % 3)
    random = np.random.Generator(np.random.PCG64(seed))
    for red, green, blue, left, top in random.integers(0, 256, (6, 5)).tolist():
        corner = (left * width // 300, top * height // 300)
        size = min(width, height) // 4
        draw.ellipse((*corner, corner[0] + 2 * size, corner[1] + size), fill=(red, green // 2, blue), outline="white")
    draw.rectangle((width * 2 // 3, 2, width - 3, height // 3), fill=(230, 30, 20), outline="black")
    return image
