"""From an opened file to 8-bit RGB, within bounds of time and memory that hold for every image.

What a file costs is read in its header before anything is decoded: a few kilobytes can ask for minutes or gigabytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

from mpa_edge.types import Drop

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_ASPECT = 200
MAX_BYTES = 1_000_000_000
"""Of memory, for one image."""
DECODER_BYTES = {"WEBP": 16}
"""For each pixel, where the decoder keeps several copies."""
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 2_000_000_000
"""Scans times pixels of a JPEG: each scan of a progressive one visits all pixels again. Encoders write about ten."""
MAX_TILES = 200_000
MAX_TILE_PIXELS = 2**24
MAX_SLOW_SAMPLES = 16_000_000
"""Of formats that Pillow decodes in Python: about a million a second."""
SLOW_DECODERS = ("ppm", "ppm_plain")
STRIP_PIXELS = 1_000_000
LEVELS = (255, 1023, 4095, 16383, 65535)
"""White of 8, 10, 12, 14 and 16 bits."""
TAG_JPEG, TAGS_OF_WHITE, TAG_BITS = (6, 7), (341, 281), 258
TAGS_OF_TILE, TAGS_OF_PARTS, TAG_COMPRESSION = (322, 323), (273, 324), 259
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_METADATA = (b"iCCP", b"iTXt", b"zTXt", b"tEXt")
JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
SOS, EOI, ALONE = b"\xda", b"\xd9", (b"\x01", b"\xd8")
OTHER_BYTE = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B"}
"""How a raw mode ends -> how to read the other byte of each 16-bit sample (Pillow keeps the high one)."""
GREY_ALPHA = {"LA;16B": "RGBA"}
"""Read as four bytes, of which the second is the low byte of grey."""


def unfit(image: Image, file: BinaryIO, max_pixels: int) -> Drop | None:
    """Why an image that was opened, and not decoded yet, is left out; None where it can be decoded."""
    width, height = image.size
    if width < 1 or height < 1:
        return Drop("damaged image", f"{width}x{height} pixels")
    if width * height > max_pixels or width * height * DECODER_BYTES.get(image.format or "", 0) > MAX_BYTES:
        return Drop("too many pixels", f"{width}x{height}")
    if max(image.size) > MAX_ASPECT * min(image.size):
        return Drop("too narrow", f"{width}x{height}: image processors refuse such shapes")
    costly = _costly(image, file)
    return Drop("too costly to decode", costly) if costly else None


def _costly(image: Image, file: BinaryIO) -> str:
    """What would take minutes or gigabytes; empty where nothing does."""
    pixels, tiles, tags = image.width * image.height, getattr(image, "tile", ()), getattr(image, "tag_v2", {})
    if len(tiles) > MAX_TILES:
        return f"{len(tiles)} tiles"
    if (
        tiles
        and tiles[0][0] in SLOW_DECODERS
        and not _has_raw_samples(image)
        and pixels * len(image.getbands()) > MAX_SLOW_SAMPLES
    ):
        return f"{image.width}x{image.height} pixels as plain text or with an odd maximum"
    sides = [int(tags.get(tag, 0)) for tag in TAGS_OF_TILE]
    if sides[0] * sides[1] > max(MAX_TILE_PIXELS, pixels):
        return f"tiles of {sides[0]}x{sides[1]} pixels"
    scans = 0
    if image.format in ("JPEG", "MPO"):
        scans = jpeg_scans(_content(file))
    elif tags.get(TAG_COMPRESSION) in TAG_JPEG:  # each part is a JPEG of its own
        parts = max(len(tags.get(tag, ())) for tag in TAGS_OF_PARTS)
        scans = _content(file).count(b"\xff" + SOS) // max(1, parts)
    if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
        return f"more than {min(MAX_SCANS, MAX_SCANNED_PIXELS // pixels)} scans"
    return ""


def _content(file: BinaryIO) -> bytes:
    """The whole file; its position stays."""
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return content


def jpeg_scans(data: bytes) -> int:
    """The number of scans of the first image in JPEG data, at most one more than `MAX_SCANS`.

    >>> jpeg_scans(b"\\xff\\xd8\\xff\\xda\\0\\2\\1\\xff\\0\\2\\xff\\xda\\0\\2\\3\\xff\\xd9\\xff\\xda")
    2
    """
    scans, position = 0, 0
    while scans <= MAX_SCANS and (found := JPEG_MARKER.search(data, position)) and found[1] != EOI:
        scans += found[1] == SOS
        length = 0 if found[1] in ALONE else int.from_bytes(data[found.end() : found.end() + 2], "big")
        position = found.end() + length
    return scans


def decode(image: Image, file: BinaryIO) -> Image:
    """First frame, upright, 8-bit RGB. `file` is what `image` was opened from."""
    from PIL import ImageOps

    image.seek(0)
    low_bytes, white = _raw_mode_of_low_bytes(image), _declared_white(image)
    image.load()
    if low_bytes and max(high for _, high in _extrema(image)) <= LEVELS[-2] >> 8:
        _scale_dark(image, file, low_bytes)
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # broken metadata, intact pixels: keep their orientation
        image.info.pop("exif", None)
    return to_rgb(image, white)


def to_rgb(image: Image, white: float = 0.0) -> Image:
    """Any Pillow mode to 8-bit RGB; transparency is composited on white.

    Greyscale of more than 8 bits is scaled from 0 to `white`, which the file states; where it does not (0), to that of
    the fewest bits (8, 10, 12, 14, 16) that hold all values. Work is done in strips: memory holds two copies.
    """
    from PIL import Image as PILImage

    if image.mode == "RGB" and "transparency" not in image.info:
        return image._new(image.im)  # an image without its file
    if image.mode.startswith(("I", "F")):
        white = _white(image, white)
    if image.width * image.height <= STRIP_PIXELS:
        return _to_rgb(image, white)
    rgb = PILImage.new("RGB", image.size)
    for top, strip in _strips(image):
        rgb.paste(_to_rgb(strip, white), (0, top))
    return rgb


def _strips(image: Image) -> Iterator[tuple[int, Image]]:
    """(first row, the rows) of each million pixels."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _to_rgb(image: Image, white: float) -> Image:
    """`to_rgb` of a strip."""
    import numpy as np
    from PIL import Image as PILImage

    if image.mode.startswith(("I", "F")):
        grey = _plain_numbers(image).clip(0, white) * (255.0 / white)
        return PILImage.fromarray(grey.round().astype(np.uint8), mode="L").convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return PILImage.alpha_composite(PILImage.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode == "LAB":
        from PIL import ImageCms

        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        converted = ImageCms.applyTransform(image, transform)
        return image.convert("L").convert("RGB") if converted is None else converted
    return image.convert("RGB")


def _plain_numbers(image: Image) -> Any:
    """Greyscale as float64 without NaN and infinity."""
    import numpy as np

    return np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _white(image: Image, declared: float) -> float:
    """The value that becomes white in greyscale of more than 8 bits: Pillow's own convert would clip it."""
    top = max(float(_plain_numbers(strip).max()) for _, strip in _strips(image))
    if image.mode == "F" and top <= 1.0:
        return 1.0
    if declared and top <= declared:
        return declared
    return next((float(level) for level in LEVELS if top <= level), top)


def _has_raw_samples(image: Image) -> bool:
    """Whether Pillow would scale 16-bit samples in Python which can be read as they are."""
    return image.format == "PPM" and image.mode == "I" and image.tile[0][0] == "ppm"  # type: ignore[attr-defined]


def _declared_white(image: Image) -> float:
    """White as a file states it; 0 where it does not. A PNG cannot: its sBIT speaks of values that were scaled.

    Of a PGM with a white of its own, the samples are read as they are from now on.
    """
    if _has_raw_samples(image):
        _, box, offset, arguments = image.tile[0]  # type: ignore[attr-defined]
        image.tile = [("raw", box, offset, ("I;16B", 0, 1))]  # type: ignore[attr-defined]
        return float(arguments[-1])
    if image.format == "PPM" and image.mode == "I":
        return 65535.0
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TAG_BITS, (0,))[0]
    stated = [tags.get(tag) for tag in TAGS_OF_WHITE] + [2**bits - 1 if bits < 16 else 0]
    values = (value[0] if isinstance(value, tuple) else value for value in stated if value)
    return max((float(value) for value in values), default=0.0)


def _raw_mode_of_low_bytes(image: Image) -> str:
    """The raw mode that reads the low byte of each colour of 16 bits; empty where there is none."""
    modes = {tile[3] if isinstance(tile[3], str) else (tile[3] or ("",))[0] for tile in getattr(image, "tile", ())}
    raw = modes.pop() if len(modes) == 1 else ""
    if image.mode not in ("RGB", "RGBA") or not isinstance(raw, str) or raw[-4:] not in OTHER_BYTE:
        return ""
    return GREY_ALPHA[raw] if raw in GREY_ALPHA else raw[:-4] + OTHER_BYTE[raw[-4:]]


def _extrema(image: Image) -> list[tuple[int, int]]:
    """(lowest, highest) of the red, green and blue high bytes."""
    return list(image.getextrema()[:3])  # type: ignore[arg-type]


def _scale_dark(image: Image, file: BinaryIO, raw_mode: str) -> None:
    """Scale colours of 10, 12 or 14 bits that fill a 16-bit file to no more than a quarter: their high bytes are dark.

    `image` holds the high bytes, and afterwards the colours.
    """
    import numpy as np
    from PIL import Image as PILImage

    file.seek(0)
    with PILImage.open(file, formats=[image.format or ""]) as opened:
        low: Any = opened
        low.tile = [
            (*tile[:3], raw_mode if isinstance(tile[3], str) else (raw_mode, *tile[3][1:])) for tile in low.tile
        ]
        low.load()

        where = slice(1, 2) if raw_mode in GREY_ALPHA.values() else slice(3)

        def colours() -> Iterator[tuple[int, Any]]:
            for (top, high), (_, rest) in zip(_strips(image), _strips(low), strict=True):
                yield top, np.asarray(high)[..., :3].astype(np.uint16) << 8 | np.asarray(rest)[..., where]

        highest = max(int(values.max()) for _, values in colours())
        white = next(level for level in LEVELS if highest <= level)
        scale = (np.arange(white + 1) * (255.0 / white)).round().astype(np.uint8)
        for top, values in colours():
            scaled = PILImage.fromarray(scale[values], mode="RGB")
            if image.mode == "RGBA":
                scaled.putalpha(image.crop((0, top, image.width, top + scaled.height)).getchannel("A"))
            image.paste(scaled, (0, top))


def as_jpeg(image: Image, longest_px: int, quality: int = 85, **options: Any) -> bytes:
    """An image as JPEG without metadata, scaled in place to sides of at most `longest_px`. `options`: Pillow's."""
    image.thumbnail((longest_px, longest_px))
    data = BytesIO()
    image.save(data, "JPEG", quality=quality, **options)
    return data.getvalue()


def without_metadata(file: BinaryIO) -> BinaryIO | None:
    """A PNG without its profile and texts, which Pillow refuses above a megabyte; None where there are none."""
    content, kept, position = _content(file), [PNG_SIGNATURE], len(PNG_SIGNATURE)
    if not content.startswith(PNG_SIGNATURE):
        return None
    while position + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        if kind not in PNG_METADATA:
            kept.append(content[position : position + length + 12])
        position += length + 12
    stripped = b"".join(kept)
    return BytesIO(stripped) if len(stripped) < len(content) else None
