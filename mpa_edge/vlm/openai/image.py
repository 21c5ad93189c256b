"""A picture as a data URI: the bytes themselves go to the server, never an address that it would have to fetch.

PNG by default: the teacher then sees the very pixels that the student is trained on, and answers do not depend on how a
JPEG was rounded. A photograph is several times larger as PNG than as JPEG, so that JPEG is the better choice over a
slow line. Hosted servers refuse files of more than a few MB: above the cap a picture becomes a JPEG, and
if that does not do, it loses a quarter of its sides at a time.
"""

from __future__ import annotations

import asyncio
import base64
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
    if image_format == "png":
        data = encoded(image, "png")
        if len(data) <= max_bytes:
            return _uri("png", data)
    data = encoded(image, "jpeg")
    while len(data) > max_bytes and max(image.size) > 1:
        image = image.resize((max(1, int(image.width * SHRINK)), max(1, int(image.height * SHRINK))))
        data = encoded(image, "jpeg")
    return _uri("jpeg", data)


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def encoded(image: Image, image_format: Format) -> bytes:
    """The file of a picture. PNG is packed lightly: time counts for more than a few bytes."""
    buffer = io.BytesIO()
    if image_format == "png":
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


class Pictures:
    """Data URIs of the pictures in use: several questions about one picture pack it once, in a thread."""

    def __init__(self, image_format: Format, max_bytes: int, kept: int) -> None:
        self._format: Format = image_format
        self._max_bytes, self._kept = max_bytes, kept
        # the picture is held beside its task: another one must not get its id
        self._tasks: OrderedDict[int, tuple[Image, asyncio.Task[str]]] = OrderedDict()

    async def uri(self, image: Image) -> str:
        """The data URI of a picture."""
        if id(image) not in self._tasks:
            work = asyncio.to_thread(data_uri, image, self._format, self._max_bytes)
            self._tasks[id(image)] = image, asyncio.create_task(work)
        self._tasks.move_to_end(id(image))
        task = self._tasks[id(image)][1]
        while len(self._tasks) > self._kept:
            self._tasks.popitem(last=False)
        return await asyncio.shield(task)

    def clear(self) -> None:
        """Forget all pictures."""
        self._tasks.clear()
