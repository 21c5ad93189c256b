"""Intake of a folder of pictures that nobody checked: every image is opened as RGB or dropped with its reason.

Nothing in a file is trusted: only the formats below are tried (no PostScript, which would start a program), the pixel
cap is read from the header before anything is decoded, and what is not a regular file is never opened.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from mpa_edge.errors import MpaError
from mpa_edge.images.index import DUPLICATE, ImageEntry, ImageIndex
from mpa_edge.images.parquet import is_parquet_row, parquet_row_bytes
from mpa_edge.runs.files import atomic_write, sha256_stream
from mpa_edge.types import Drop

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DUPLICATE", "ImageEntry", "ImageIndex", "PreviousScan", "open_image", "scan", "to_rgb"]

# no EPS: Pillow would start Ghostscript for it
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
READ_SUFFIXES = frozenset(
    (
        ".png",
        ".jpg",
        ".jpeg",
        ".jfif",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".webp",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
    )
)
OTHER_SUFFIXES = frozenset(
    (
        ".heic",
        ".heif",
        ".svg",
        ".ico",
        ".psd",
        ".jxl",
        ".jp2",
        ".eps",
        ".tga",
        ".dds",
        ".exr",
        ".hdr",
        ".raw",
        ".dng",
        ".xcf",
    )
)
MAX_PIXELS = 89_478_485
MAX_ASPECT = 200
ID_DIGITS = 16
TICK_NS = 2_000_000_000  # file systems and network shares count time in steps of up to two seconds


def scan(folder: str | Path, known: PreviousScan | None = None) -> ImageIndex:
    """Every image below a folder, sorted by name; those that cannot be used carry their `drop`.

    Hidden files and files without an image suffix are ignored. Linked folders are followed, each folder once. A
    file that is `known` is not read again. MpaError where the folder is missing, is no folder, or holds no image.
    """
    root = Path(folder)
    if not root.exists():
        raise MpaError(f"no folder '{folder}': name an existing folder of images, --images DIR")
    if not root.is_dir():
        raise MpaError(f"'{folder}' is not a folder: name the folder that holds the images, --images DIR")
    seen = known or PreviousScan(None)
    found = ImageIndex(root, (_examine(root, name, seen) for name in _walk(root, "", set())))
    if not len(found):
        raise MpaError(f"no images in '{folder}': put .png or .jpg files there, or name another folder, --images DIR")
    found = found.sorted_by()
    found.mark_duplicates()
    return found


def _walk(root: Path, inside: str, seen: set[tuple[int, int]]) -> Iterator[str | ImageEntry]:
    """Names of the images of one folder and those below it; a folder seen before (links, loops) is left out.

    Names are text, not paths: those take ten times as much time and memory.
    """
    folder = os.path.join(root, inside) if inside else str(root)
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        names = sorted(os.listdir(folder))
    except OSError as error:
        yield _entry(root, inside or ".", Drop("unreadable folder", error.strerror or ""))
        return
    for name in names:
        if name.startswith("."):
            continue
        suffix = os.path.splitext(name)[1].lower()
        below = f"{inside}/{name}" if inside else name
        if suffix not in READ_SUFFIXES and os.path.isdir(os.path.join(root, below)):
            yield from _walk(root, below, seen)
        elif suffix in READ_SUFFIXES or suffix in OTHER_SUFFIXES:
            yield below


def _entry(root: Path, name: str, drop: Drop) -> ImageEntry:
    """An entry that nobody could read: its id is made from its name."""
    raw = os.fsencode(name)
    return ImageEntry(hashlib.sha256(raw).hexdigest()[:ID_DIGITS], raw.decode("utf-8", "replace"), root, drop)


def _examine(root: Path, name: str | ImageEntry, known: PreviousScan) -> ImageEntry:
    """Hash one file, or say why that is not possible."""
    if isinstance(name, ImageEntry):
        return name
    try:
        name.rpartition("/")[2].encode()
    except UnicodeEncodeError:
        return _entry(root, name, Drop("file name is not UTF-8"))
    suffix = os.path.splitext(name)[1].lower()
    if suffix in OTHER_SUFFIXES:
        return _entry(root, name, Drop("unsupported image type", suffix))
    path = os.path.join(root, name)
    if before := known.id_of(name, path):
        return ImageEntry(before, name, root)
    opened = _open_regular(path)
    if isinstance(opened, Drop):
        return _entry(root, name, opened)
    try:
        with opened as file:
            digest = sha256_stream(file)
    except OSError as error:
        return _entry(root, name, Drop("unreadable file", error.strerror or ""))
    return ImageEntry(digest[:ID_DIGITS], name, root)


def _mark(path: str | Path) -> list[int]:
    """What changes when somebody writes to a file, whatever its dates are set to; OSError where it is gone."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _place(name: bytes) -> bytes:
    """Sorts names as `_walk` comes to them: a folder before what only begins with its name."""
    return name.replace(b"/", b"\0")


class PreviousScan:
    """What an earlier scan found, read along line by line: the next one comes to the same names in the same order."""

    def __init__(self, path: Path | None) -> None:
        """A missing or damaged file knows nothing."""
        self.missed, self.began_ns = 0, time.time_ns()
        self._lines = self._read(path) if path is not None and path.is_file() else iter(())
        self._next: tuple[str, str, list[int]] | None = next(self._lines, None)

    @staticmethod
    def _read(path: Path) -> Iterator[tuple[str, str, list[int]]]:
        with path.open(encoding="utf-8") as file, suppress(ValueError, TypeError):
            for line in file:
                name, digest, *mark = json.loads(line)
                yield str(name), str(digest), mark

    def id_of(self, name: str, path: str | Path) -> str | None:
        """Id of a file that is what it was; None, and counted as missed, where it has to be read."""
        while self._next is not None and self._next[0] != name and _is_before(self._next[0], name):
            self._next = next(self._lines, None)
        with suppress(OSError):
            if self._next is not None and self._next[0] == name and _mark(path) == self._next[2]:
                return self._next[1]
        self.missed += 1
        return None

    def write(self, entries: Iterable[ImageEntry], path: Path) -> None:
        """Write what the scan found, for the next one; nothing where it found nothing new.

        Files that changed shortly before the scan or since are left out: a second change within a tick leaves no trace.
        """
        if not self.missed:
            return
        found = entries if isinstance(entries, ImageIndex) else ImageIndex(Path(), entries)
        with atomic_write(path) as file:
            for entry in found.sorted_by(_place):
                if entry.drop is None or entry.drop.reason == DUPLICATE:
                    file.write(self._line(entry))

    def _line(self, entry: ImageEntry) -> bytes:
        with suppress(OSError):
            mark = _mark(entry.path)
            if mark[2] < self.began_ns - TICK_NS:
                return json.dumps([entry.name, entry.id, *mark]).encode() + b"\n"
        return b""


def _is_before(one: str, other: str) -> bool:
    """Whether `_walk` comes to a name before it comes to another."""
    return one.replace("/", "\0") < other.replace("/", "\0")


def _open_regular(path: str | Path) -> BufferedReader | Drop:
    """Open a regular file that is not empty; a pipe or a device would wait for ever and is never read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = "not a regular file" if error.errno in (errno.ENXIO, errno.ENODEV) else "unreadable file"
        return Drop(reason, error.strerror or "")
    status = os.fstat(descriptor)
    drop = None
    if not stat.S_ISREG(status.st_mode):
        drop = Drop("not a regular file", "folder" if stat.S_ISDIR(status.st_mode) else "pipe, socket or device")
    elif status.st_size == 0:
        drop = Drop("empty file")
    if drop is None:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    return drop


def _open_packed(path: str | Path) -> BytesIO | Drop:
    """The same for a picture inside a parquet file."""
    data = parquet_row_bytes(path)
    return data if isinstance(data, Drop) else BytesIO(data)


def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image | Drop:
    """The picture as RGB, upright, first frame, transparency on white; or why it cannot be used.

    16-bit depth is scaled to 8; a file with more than `max_pixels` pixels is dropped before it is decoded.
    `FILE.parquet#ROW` is the picture of a row (`packed.py`).
    """
    from PIL import Image as PILImage
    from PIL import UnidentifiedImageError

    opened = _open_packed(path) if is_parquet_row(path) else _open_regular(Path(path))
    if isinstance(opened, Drop):
        return opened
    try:
        with opened, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what decoders complain about is either our Drop or no matter
            with PILImage.open(opened, formats=_formats()) as image:
                return _bad_size(image.size, max_pixels) or _decode(image)
    except PILImage.DecompressionBombError:
        return Drop("too many pixels", "the file announces more than Pillow would ever decode")
    except UnidentifiedImageError:
        return Drop("not an image", "the content is none of the known formats")
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # a damaged file can raise anything inside a decoder; it must cost one image, not the run
        return Drop("damaged image", f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])


def _formats() -> tuple[str, ...]:
    """The formats that this Pillow was built with: it refuses names it does not know."""
    from PIL import Image as PILImage

    PILImage.init()
    return tuple(name for name in FORMATS if name in PILImage.OPEN)


def _bad_size(size: tuple[int, int], max_pixels: int) -> Drop | None:
    """What is wrong with a size in pixels, by the header alone.

    >>> _bad_size((60_000, 60_000), 89_478_485)
    Drop(reason='too many pixels', detail='60000x60000')
    """
    width, height = size
    if width < 1 or height < 1:
        return Drop("damaged image", f"{width}x{height} pixels")
    if width * height > max_pixels:
        return Drop("too many pixels", f"{width}x{height}")
    if max(size) > MAX_ASPECT * min(size):
        return Drop("too narrow", f"{width}x{height}: image processors refuse such shapes")
    return None


def _decode(image: Image) -> Image:
    """First frame, upright, RGB."""
    from PIL import ImageOps

    image.seek(0)
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # broken metadata, sound pixels: keep them as they lie
        image.info.pop("exif", None)
    return to_rgb(image)


def to_rgb(image: Image) -> Image:
    """Any Pillow mode to 8-bit RGB; transparency is composited on white."""
    from PIL import Image as PILImage

    if image.mode.startswith(("I", "F")):
        return _scaled_to_8_bit(image).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return PILImage.alpha_composite(PILImage.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode == "LAB":
        from PIL import ImageCms

        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        converted = ImageCms.applyTransform(image, transform)
        return image.convert("L").convert("RGB") if converted is None else converted
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _scaled_to_8_bit(image: Image) -> Image:
    """16-bit, 32-bit and float greys to 8 bits: Pillow's own convert would clip them to white."""
    import numpy as np
    from PIL import Image as PILImage

    grey = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(grey.max())
    full = 65535.0 if image.mode.startswith("I;16") or 255 < top <= 65535 else max(top, 255.0)
    if image.mode == "F" and top <= 1.0:
        full = 1.0
    return PILImage.fromarray((grey.clip(0, full) * (255.0 / full)).round().astype(np.uint8), mode="L")
