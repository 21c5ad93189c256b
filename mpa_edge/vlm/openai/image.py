"""An image as a data URI: its bytes are sent to the server, never an address that it would have to fetch.

PNG by default: the teacher then sees exactly the pixels that the student is trained on. A photograph is several times
smaller as JPEG, which is better on a slow connection. Hosted servers refuse files of more than a few MB: above the cap
an image becomes a JPEG, and if that is still too large, it loses a quarter of its sides at a time.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

Format = Literal["png", "jpeg"]
JPEG_QUALITY = 95
SHRINK = 0.75


def data_uri(image: Image, image_format: Format = "png", max_bytes: int = 5_000_000) -> str:
    """`data:image/png;base64,...` of at most `max_bytes` before base64 (or of one pixel).

    >>> from PIL import Image
    >>> data_uri(Image.new("RGB", (8, 8)))[:22]
    'data:image/png;base64,'
    """
    while True:
        buffer = io.BytesIO()
        if image_format == "png":
            image.save(buffer, "PNG", compress_level=1)  # time matters more than a few bytes
        else:
            image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        data = buffer.getvalue()
        if len(data) <= max_bytes or (image_format == "jpeg" and image.size == (1, 1)):
            return f"data:image/{image_format};base64,{base64.b64encode(data).decode()}"
        if image_format == "jpeg":
            image = image.resize((max(1, int(image.width * SHRINK)), max(1, int(image.height * SHRINK))))
        image_format = "jpeg"


def packed(image: Image, image_format: Format, max_bytes: int) -> tuple[str, str]:
    """(data URI, its sha256)."""
    uri = data_uri(image, image_format, max_bytes)
    return uri, hashlib.sha256(uri.encode()).hexdigest()


class ImageCache:
    """Data URIs of the images in use: an image is encoded once for several questions, in a thread."""

    def __init__(self, image_format: Format, max_bytes: int, capacity: int) -> None:
        self._format: Format = image_format
        self._max_bytes, self._capacity = max_bytes, capacity
        # the image is kept beside its task, so that no other image can get its id
        self._tasks: OrderedDict[int, tuple[Image, asyncio.Task[tuple[str, str]]]] = OrderedDict()

    async def uri(self, image: Image) -> tuple[str, str]:
        """The data URI of an image, and its sha256."""
        if id(image) not in self._tasks:
            work = asyncio.to_thread(packed, image, self._format, self._max_bytes)
            self._tasks[id(image)] = image, asyncio.create_task(work)
        self._tasks.move_to_end(id(image))
        task = self._tasks[id(image)][1]
        while len(self._tasks) > self._capacity:
            self._tasks.popitem(last=False)
        return await asyncio.shield(task)

    def clear(self) -> None:
        """Drop all images."""
        self._tasks.clear()
