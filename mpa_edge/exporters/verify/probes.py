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
TEXT_TOKENS = 384
TEXT = """\
The harbour office opens at seven. Before that the quay belongs to the gulls, and to whoever could not sleep: an old man
with a folding chair, two students who share one coat, a woman who counts the boats and writes the number into a small
red notebook. On Monday there were 41, on Tuesday 38, because the weather had turned and three crews had gone home.
Nobody asked her to count them. She says that a number which is written down every day becomes useful after a year, and
that most people stop after a week.

At half past nine the ferry from the islands comes in, usually with mail, milk and about sixty passengers. Most of them
work in the hospital or at the university; the others want to see the market, where fish is cheaper than in any shop and
the prices are still written with chalk. "What does the large one cost?" asked a boy in a yellow jacket. "Twelve euros,"
said the seller, "but it is too heavy for you. Take two of the small ones, and tell your father how to cook them: ten
minutes in the oven, with a little oil, salt and half a lemon." The boy nodded, paid with a note that was wet from the
rain, and ran. By noon the stalls are empty, the ice has melted between the stones, and the whole square smells of the
sea. In the afternoon the wind often comes from the north-west, and then the flags on the roof of the office stand out
as stiff as boards. A storm is a different matter: the pilots stay in, the cranes are tied down, and the radio reads
out the height of the water every hour until somebody, usually the youngest clerk, is sent to close the iron gates.
"""
"""English, written for this check: a model's activations on text are larger than on a drawn image alone."""


def probes(image: dict[str, Any], prompt: Callable[[str], str], image_token: str) -> list[list[Request]]:
    """Probes for an image processor with these values, in batches; the last is the first one with a gray image.

    One image is asked about alone, two as a batch with other sizes and questions of different length. Every tile costs
    seconds where images are split: the wide image has one row of tiles, the tall one two columns. `prompt` adds what
    the run adds to each question; one question contains the image token, as a user's might.
    """
    wide, tall = drawn(LONG, SHORT, seed=1), drawn(*two_columns(image), seed=2)
    short = prompt("What is shown?")
    longer = prompt(f"How many red{image_token} shapes are there, and is the largest one left of 3 o'clock?")
    gray = Image.new("RGB", wide.size, GRAY)
    first, second, blank = (
        Request(each, question, MAX_NEW_TOKENS) for each, question in ((wide, longer), (tall, short), (gray, longer))
    )
    return [[first], [second, blank]]


def two_columns(image: dict[str, Any]) -> tuple[int, int]:
    """Width and height that become two columns of tiles where images are split.

    >>> two_columns({"max_image_size": {"longest_edge": 512}, "size": {"longest_edge": 2048}})
    (128, 256)
    >>> two_columns({"size": {"height": 112, "width": 112}})
    (128, 192)
    """
    if "max_image_size" not in image:
        return 128, 192
    tiles = image["size"]["longest_edge"] // image["max_image_size"]["longest_edge"]
    return 128, 64 * max(tiles, 2)


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
