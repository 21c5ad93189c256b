from __future__ import annotations

import os
import random
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpa_edge.errors import MpaError
from mpa_edge.images import folder as images
from mpa_edge.types import Drop

Picture = Callable[..., Path]


def reasons(folder: Path) -> dict[str, str | None]:
    return {entry.name: entry.drop.reason if entry.drop else None for entry in images.scan(folder)}


def opened(path: Path, **options: int) -> Image.Image:
    image = images.open_image(path, **options)
    assert isinstance(image, Image.Image), image
    assert image.mode == "RGB"
    return image


def reason(path: Path, **options: int) -> str:
    drop = images.open_image(path, **options)
    assert isinstance(drop, Drop), drop
    assert "\n" not in drop.detail
    return drop.reason


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and has next to no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_scan_is_recursive_sorted_and_counts_only_images(picture: Picture) -> None:
    folder = picture("b/z.PNG", color="blue").parent.parent
    picture("a.jpg", color="green")
    picture(".hidden.png", color="white")
    (folder / "notes.txt").write_text("x")
    (folder / "data.json").write_text("{}")
    assert reasons(folder) == {"a.jpg": None, "b/z.PNG": None}
    assert images.scan(folder) == images.scan(str(folder))
    assert all(len(entry.id) == 16 for entry in images.scan(folder))


def test_duplicates_by_content_are_dropped(picture: Picture) -> None:
    first = picture("a.png")
    (first.parent / "b.png").write_bytes(first.read_bytes())
    entries = images.scan(first.parent)
    assert [entry.drop for entry in entries] == [None, Drop("duplicate image", "same content as a.png")]


def test_what_is_no_regular_file_is_never_read(picture: Picture, tmp_path: Path) -> None:
    folder = picture("good.png").parent
    os.mkfifo(folder / "pipe.png")
    (folder / "broken.png").symlink_to("nowhere")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "images.png").mkdir()
    (folder / "null.png").symlink_to("/dev/zero")
    (folder / "zero.png").write_bytes(b"")
    (folder / "photo.heic").write_bytes(b"x")
    started = time.monotonic()
    assert reasons(folder) == {
        "broken.png": "unreadable file",
        "images.png": "not a regular file",
        "good.png": None,
        "loop.png": "unreadable file",
        "null.png": "not a regular file",
        "photo.heic": "unsupported image type",
        "pipe.png": "not a regular file",
        "zero.png": "empty file",
    }
    assert reason(folder / "pipe.png") == "not a regular file"
    assert reason(folder / "gone.png") == "unreadable file"
    assert time.monotonic() - started < 2


def test_linked_folders_are_followed_once(picture: Picture, tmp_path: Path) -> None:
    folder = picture("sub/a.png").parent.parent
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "again").symlink_to(folder / "sub")
    assert len(images.scan(folder)) == 1


def test_a_file_name_that_is_not_utf8_is_dropped(picture: Picture) -> None:
    folder = picture("a.png").parent
    (folder / os.fsdecode(b"\xff.png")).write_bytes((folder / "a.png").read_bytes())
    (folder / os.fsdecode(b"\xfe")).mkdir()
    (folder / os.fsdecode(b"\xfe/b.png")).write_bytes(b"in a folder whose name is not UTF-8")
    assert sorted(str(drop) for drop in reasons(folder).values()) == ["None", *["file name is not UTF-8"] * 2]
    for entry in images.scan(folder):
        entry.name.encode()


@pytest.mark.parametrize(
    ("name", "expected"), [("gone", "no folder"), ("file.txt", "is not a folder"), ("empty", "no images in")]
)
def test_a_wrong_folder_is_one_line_that_ends_with_the_fix(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MpaError, match=f"{expected}.*--images DIR$"):
        images.scan(tmp_path / name)


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("x")
    with pytest.raises(MpaError, match=r"no images in '.*' \(it holds 1 \.txt\): put \.png or \.jpg files there"):
        images.scan(tmp_path)
    for i in range(2):
        (tmp_path / "data" / f"train-{i}.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        MpaError, match=r"no images in '.*' but 2 parquet tables: save their images as .* --images DIR$"
    ):
        images.scan(tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "YCbCr", "LAB", "F"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.png" if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "a.tif")
    Image.new(mode, (6, 4)).save(path)
    assert opened(path).size == (6, 4)


def test_cmyk_jpeg_keeps_its_colour(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = opened(tmp_path / "a.jpg").getpixel((4, 4))
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(path)
    assert [opened(path).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 1), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    image = opened(tmp_path / "p.png")
    assert (image.getpixel((0, 0)), image.getpixel((1, 1))) == ((255, 255, 255), (255, 0, 0))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (10, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert opened(tmp_path / "a.jpg").size == (4, 10)


def test_broken_exif_does_not_cost_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (10, 4)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert opened(tmp_path / "a.jpg").size == (10, 4)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    red, _, blue = opened(tmp_path / f"a.{suffix}").getpixel((0, 0))
    assert red > 200 > 50 > blue


def test_a_bomb_is_dropped_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(60_000, 60_000))
    started = time.monotonic()
    assert reason(path) == "too many pixels"
    path.write_bytes(png_header(10_000, 10_000))  # above our cap, below what Pillow refuses
    assert images.open_image(path) == Drop("too many pixels", "10000x10000")
    assert time.monotonic() - started < 1
    assert Image.MAX_IMAGE_PIXELS is not None


def test_the_cap_is_a_setting(picture: Picture) -> None:
    path = picture("a.png", size=(100, 100))
    assert reason(path, max_pixels=9_999) == "too many pixels"
    assert opened(path, max_pixels=10_000).size == (100, 100)


def test_damaged_files_are_dropped_with_a_reason(picture: Picture, tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(64 * 64 * 3)
    path = tmp_path / "noise.png"
    Image.frombytes("RGB", (64, 64), noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert reason(path) == "damaged image"
    path.write_bytes(whole[:20])
    assert reason(path) in ("damaged image", "not an image")
    path.write_text("this is a text")
    assert reason(path) == "not an image"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert reason(path) == "not an image"
    assert reason(picture("line.png", size=(1, 500))) == "too narrow"


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_no_corruption_raises(tmp_path: Path, suffix: str) -> None:
    """Every file is an image or a Drop, whatever bytes are in it."""
    rng = random.Random(suffix)
    source = tmp_path / f"a.{suffix}"
    Image.frombytes("RGB", (32, 32), rng.randbytes(32 * 32 * 3)).save(source)
    whole = source.read_bytes()
    for _ in range(150):
        data = bytearray(whole[: rng.randrange(1, len(whole) + 1)])
        for _ in range(rng.randrange(6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        source.write_bytes(data)
        assert isinstance(images.open_image(source, 1_000_000), Drop | Image.Image)


def remembered(folder: Path, file: Path, began_ns: int | None = None) -> images.PreviousScan:
    """One scan, written for the next one."""
    known = images.PreviousScan(file)
    known.began_ns = began_ns or known.began_ns
    known.write(images.scan(folder, known), file)
    return known


@pytest.fixture
def old_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were just written count as old."""
    monkeypatch.setattr(images, "TICK_NS", -(10**10))


@pytest.mark.usefixtures("old_clock")
def test_what_an_earlier_scan_read_is_not_read_again(picture: Picture, tmp_path: Path, monkeypatch) -> None:
    folder = picture("b/z.png", color="blue").parent.parent
    for i, name in enumerate(("a.png", "b.png", "b-c/1.png", "b/a/2.png", "c.png")):
        picture(name, color=(i, 0, 0))
    (folder / "d.png").write_bytes((folder / "c.png").read_bytes())
    (folder / "empty.png").write_bytes(b"")
    first, file = images.scan(folder), tmp_path / "seen.jsonl"
    assert remembered(folder, file).n_missed == 8
    again, read = images.PreviousScan(file), images.sha256_stream
    monkeypatch.setattr(images, "sha256_stream", lambda file: pytest.fail(f"{file} was read"))
    assert images.scan(folder, again) == first
    assert again.n_missed == 1  # the empty one says nothing that could be remembered
    monkeypatch.setattr(images, "sha256_stream", read)
    assert reasons(folder)["d.png"] == "duplicate image"


@pytest.mark.usefixtures("old_clock")
def test_a_file_that_changed_is_read_whatever_its_dates_say(picture: Picture, tmp_path: Path) -> None:
    path, file = picture("a.png", color="blue"), tmp_path / "seen.jsonl"
    picture("b.png", color="red")
    remembered(path.parent, file)
    before, dates, size = images.scan(path.parent), path.stat(), path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert path.stat().st_size == size
    known = images.PreviousScan(file)
    changed = images.scan(path.parent, known)
    assert changed == images.scan(path.parent) != before
    assert known.n_missed == 1


@pytest.mark.usefixtures("old_clock")
def test_new_and_gone_files_are_no_matter_to_the_others(picture: Picture, tmp_path: Path) -> None:
    folder, file = picture("b.png", color="blue").parent, tmp_path / "seen.jsonl"
    for name in ("c.png", "d.png", "e/f.png"):
        picture(name, color=(len(name), ord(name[0]), 0))
    remembered(folder, file)
    (folder / "c.png").unlink()
    picture("a.png", color="white")
    picture("e/a.png", color="black")
    known = images.PreviousScan(file)
    assert images.scan(folder, known) == images.scan(folder)
    assert known.n_missed == 2


def test_a_file_of_this_moment_is_not_trusted(picture: Picture, tmp_path: Path) -> None:
    folder, file = picture("a.png", color="blue").parent, tmp_path / "seen.jsonl"
    remembered(folder, file)
    assert file.read_bytes() == b""


@pytest.mark.parametrize("content", [b"", b"no json", b'["a.png"]\n', b"3\n", b"\xff\xfe", b'[1, 2, 3]\n{"a": 1}'])
def test_a_damaged_list_knows_nothing(picture: Picture, tmp_path: Path, content: bytes) -> None:
    folder, file = picture("a.png", color="blue").parent, tmp_path / "seen.jsonl"
    file.write_bytes(content)
    known = images.PreviousScan(file)
    assert images.scan(folder, known) == images.scan(folder)
    assert known.n_missed == 1


@pytest.mark.usefixtures("old_clock")
def test_where_nothing_is_new_nothing_is_written(picture: Picture, tmp_path: Path) -> None:
    folder, file = picture("a.png", color="blue").parent, tmp_path / "seen.jsonl"
    remembered(folder, file)
    written = file.stat().st_ino
    assert remembered(folder, file).n_missed == 0
    assert file.stat().st_ino == written
