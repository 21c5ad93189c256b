"""Read a folder of unchecked images: each one is opened as RGB, or dropped with a reason.

No file is trusted: only the formats below are tried (no PostScript, for which Pillow would start Ghostscript), the
number of pixels is checked in the header before anything is decoded, and only regular files are read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from io import BufferedReader, BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from mpa_edge.errors import MpaError
from mpa_edge.images.decode import decode, unfit, without_metadata
from mpa_edge.images.index import DUPLICATE, HELD_OUT, ImageEntry, ImageIndex
from mpa_edge.images.parquet import is_parquet_row, parquet_row_bytes
from mpa_edge.runs.files import atomic_write, sha256_stream
from mpa_edge.types import Drop

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
READ_SUFFIXES = frozenset(
    f".{name}"
    for name in "png jpg jpeg jfif gif bmp tif tiff webp ppm pgm pbm pnm avif".split()  # noqa: SIM905
)
OTHER_SUFFIXES = frozenset(
    f".{name}"
    for name in "heic heif svg ico psd jxl jp2 eps tga dds exr hdr raw dng xcf".split()  # noqa: SIM905
)
MAX_PIXELS = 89_478_485
MAX_FILE_BYTES = 2**30
DAMAGED = "damaged image"
ID_DIGITS = 16
FILES_LOOKED_AT = 10_000
TICK_NS = 2_000_000_000  # file systems and network shares store times in steps of up to two seconds
Result = TypeVar("Result")
FileState = list[int]
"""Size, times of the last change of content and of status in ns, and inode: what a write changes."""


def scan(folder: str | Path, previous: PreviousScan | None = None) -> ImageIndex:
    """The image files below a folder, sorted by name; those that cannot be used have a `drop`.

    Hidden files and files without an image suffix are ignored. Linked folders are followed, each folder once. A file
    that has not changed since the `previous` scan is not read again. MpaError where the folder is missing, is not a
    folder, or has no image.
    """
    root = Path(folder)
    if not root.exists():
        raise MpaError(f"no folder '{folder}': name an existing folder of images, --images DIR")
    if not root.is_dir():
        raise MpaError(f"'{folder}' is not a folder: name the folder that holds the images, --images DIR")
    earlier = previous or PreviousScan(None)
    found = ImageIndex(root, (_entry(root, name, earlier) for name in _walk(root, "", set())))
    if not len(found):
        raise _no_images(root)
    found = found.sorted_by()
    found.mark_duplicates()
    return found


def _no_images(root: Path) -> MpaError:
    """The error for a folder without image files: it says what is there instead."""
    files = (name for _, _, names in os.walk(root) for name in names if not name.startswith("."))
    kinds = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in islice(files, FILES_LOOKED_AT))
    if kinds[".parquet"]:
        return MpaError(
            f"no images in '{root}' but {kinds['.parquet']} parquet tables: save their images as .png or .jpg files, "
            "and name that folder, --images DIR"
        )
    there = "".join(f", {n} {suffix}" for suffix, n in kinds.most_common(3))
    there = f" (it holds{there[1:]})" if there else ""
    return MpaError(f"no images in '{root}'{there}: put .png or .jpg files there, or name another folder, --images DIR")


def _walk(root: Path, inside: str, visited: set[tuple[int, int]]) -> Iterator[str | ImageEntry]:
    """Names of the images in a folder and below, or entries of folders that cannot be read.

    A folder is visited once, however it is linked. Names are strings: paths would take ten times the time and memory.
    """
    folder = os.path.join(root, inside) if inside else str(root)
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        names = sorted(os.listdir(folder))
    except OSError as error:
        yield _dropped(root, inside or ".", Drop("unreadable folder", error.strerror or ""))
        return
    for name in names:
        if name.startswith("."):
            continue
        suffix = os.path.splitext(name)[1].lower()
        below = f"{inside}/{name}" if inside else name
        if suffix not in READ_SUFFIXES and os.path.isdir(os.path.join(root, below)):
            yield from _walk(root, below, visited)
        elif suffix in READ_SUFFIXES or suffix in OTHER_SUFFIXES:
            yield below


def _entry(root: Path, name: str | ImageEntry, previous: PreviousScan) -> ImageEntry:
    """The entry of one file, with the hash of its content or the reason why it has none."""
    if isinstance(name, ImageEntry):
        return name
    try:
        name.encode()
    except UnicodeEncodeError:
        return _dropped(root, name, Drop("file name is not UTF-8"))
    suffix = os.path.splitext(name)[1].lower()
    if suffix in OTHER_SUFFIXES:
        return _dropped(root, name, Drop("unsupported image type", suffix))
    path = os.path.join(root, name)
    if known_id := previous.id_of(name, path):
        return ImageEntry(known_id, name, root)
    opened = _open_regular(path)
    if isinstance(opened, Drop):
        return _dropped(root, name, opened)
    try:
        with opened as file:
            digest = sha256_stream(file)
    except OSError as error:
        return _dropped(root, name, Drop("unreadable file", error.strerror or ""))
    return ImageEntry(digest[:ID_DIGITS], name, root)


def content_id(path: str | Path) -> str | None:
    """The id that `scan` gives an image, also for `FILE.parquet#ROW`; None where it cannot be read."""
    if is_parquet_row(path):
        data = parquet_row_bytes(path)
        return None if isinstance(data, Drop) else hashlib.sha256(data).hexdigest()[:ID_DIGITS]
    opened = _open_regular(path)
    if isinstance(opened, Drop):
        return None
    with opened as file, suppress(OSError):
        return sha256_stream(file)[:ID_DIGITS]
    return None


def first_usable(entries: Sequence[ImageEntry], limit: int, max_pixels: int) -> Sequence[ImageEntry]:
    """The entries up to the `limit`-th that can be used, by the headers of the files; where none can, the first."""
    usable = 0
    for i, entry in enumerate(entries):
        usable += entry.drop is None and _open(entry.path, max_pixels, lambda _image, _file: None) is None
        if usable == limit:
            return entries[: i + 1]
    return entries if usable else entries[:limit]


def _dropped(root: Path, name: str, drop: Drop) -> ImageEntry:
    """An entry whose content cannot be read: its id is the hash of its name."""
    raw = os.fsencode(name)
    return ImageEntry(hashlib.sha256(raw).hexdigest()[:ID_DIGITS], raw.decode("utf-8", "replace"), root, drop)


class PreviousScan:
    """What an earlier scan of a folder found, so that files that have not changed need not be hashed again.

    The file has one line for each image, in the order of `_walk`, and is read along with the next scan.
    """

    def __init__(self, path: Path | None) -> None:
        """`path`: the file; where it is missing or damaged, nothing is known."""
        self.n_missed, self.began_ns = 0, time.time_ns()
        self._lines = self._read(path) if path is not None and path.is_file() else iter(())
        self._next: tuple[str, str, FileState] | None = next(self._lines, None)

    @staticmethod
    def _read(path: Path) -> Iterator[tuple[str, str, FileState]]:
        with path.open(encoding="utf-8") as file, suppress(ValueError, TypeError):
            for line in file:
                name, digest, *state = json.loads(line)
                yield str(name), str(digest), state

    def id_of(self, name: str, path: str | Path) -> str | None:
        """The id of a file that has not changed; None, counted in `n_missed`, where it must be read."""
        while self._next is not None and _walk_order(self._next[0].encode()) < _walk_order(name.encode()):
            self._next = next(self._lines, None)
        with suppress(OSError):
            if self._next is not None and self._next[0] == name and _state(path) == self._next[2]:
                return self._next[1]
        self.n_missed += 1
        return None

    def write(self, entries: Iterable[ImageEntry], path: Path) -> None:
        """Write what this scan found, for the next one; nothing where it found nothing new.

        Left out are files that changed shortly before the scan or since: a second change within a tick of the clock
        would go unnoticed.
        """
        if not self.n_missed:
            return
        found = entries if isinstance(entries, ImageIndex) else ImageIndex(Path(), entries)
        with atomic_write(path) as file:
            for entry in found.sorted_by(_walk_order):
                if entry.drop is not None and entry.drop.reason not in (DUPLICATE, HELD_OUT):
                    continue
                with suppress(OSError):
                    state = _state(entry.path)
                    if state[2] < self.began_ns - TICK_NS:
                        file.write(json.dumps([entry.name, entry.id, *state]).encode() + b"\n")


def _state(path: str | Path) -> FileState:
    """The state of a file, whatever its dates were set to; OSError where it is gone."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _walk_order(name: bytes) -> bytes:
    """Sorts names in the order of `_walk`: a folder comes before names that only begin with its name."""
    return name.replace(b"/", b"\0")


def _open_regular(path: str | Path) -> BufferedReader | Drop:
    """Open a regular file that is not empty; reading a pipe or a device could block for ever."""
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
    elif status.st_size > MAX_FILE_BYTES:
        drop = Drop("file too large", f"{status.st_size} bytes")
    if drop is None:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    return drop


def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image | Drop:
    """The image as RGB, upright, first frame, transparency on white; or why it cannot be used.

    16-bit depth is scaled to 8. A file with more than `max_pixels` pixels, or one that would take minutes or gigabytes,
    is dropped before it is decoded.
    `FILE.parquet#ROW` is the image in a row of a parquet file (`images.parquet`).
    """
    return _open(path, max_pixels, decode)


def _open(path: str | Path, max_pixels: int, finish: Callable[[Image, BinaryIO], Result]) -> Result | Drop:
    """What `finish` makes of an image that was opened and not decoded yet, or why it cannot be used."""
    opened: BinaryIO | Drop
    if is_parquet_row(path):
        data = parquet_row_bytes(path)
        opened = data if isinstance(data, Drop) else BytesIO(data)
    else:
        opened = _open_regular(path)
    if isinstance(opened, Drop):
        return opened
    with opened:
        found = _finished(opened, max_pixels, finish)
        if isinstance(found, Drop) and found.reason == DAMAGED and (pixels_only := without_metadata(opened)):
            return _finished(pixels_only, max_pixels, finish)
        return found


def _finished(file: BinaryIO, max_pixels: int, finish: Callable[[Image, BinaryIO], Result]) -> Result | Drop:
    """`_open` of a file that is open."""
    from PIL import Image as PILImage
    from PIL import UnidentifiedImageError

    PILImage.init()
    formats = [name for name in FORMATS if name in PILImage.OPEN]  # open refuses names that this Pillow does not know
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a decoder's warning either becomes a Drop or does not matter
            with PILImage.open(file, formats=formats) as image:
                return unfit(image, file, max_pixels) or finish(image, file)
    except PILImage.DecompressionBombError:
        return Drop("too many pixels", "the file announces more than Pillow would ever decode")
    except UnidentifiedImageError:
        return Drop("not an image", "the content is none of the known formats")
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise anything in a decoder, and must cost one image, not the run
        return Drop(DAMAGED, f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])
