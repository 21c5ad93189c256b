"""What one image may cost, 16-bit files that use fewer bits, and metadata that is larger than the image."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from mpa_edge.images.folder import open_image
from mpa_edge.types import Drop

COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}


def rgb(path: Path) -> NDArray[np.uint8]:
    image = open_image(path)
    assert isinstance(image, Image.Image), image
    return np.asarray(image)


def png(width: int, height: int, bits: int, channels: int, pixels: bytes, *more: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, bits, COLOUR_TYPE[channels], 0, 0, 0)
    chunks = [(b"IHDR", head), *more, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def png_of(values: NDArray[np.uint16], *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16-bit samples, (height, width) or (height, width, channels)."""
    height, width, channels = (*values.shape, 1)[:3]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, channels, zlib.compress(rows), *more)


def empty_png(side: int, bits: int, channels: int) -> bytes:
    """A square one whose samples are all 0, without them in memory."""
    packer = zlib.compressobj(9)
    rows = [packer.compress(bytes(1 + side * bits * channels // 8)) for _ in range(side)]
    return png(side, side, bits, channels, b"".join(rows) + packer.flush())


def progressive(side: int, scans: int, **options: object) -> bytes:
    """A JPEG whose last scan stands there again and again."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (9, 99, 200)).save(file, "JPEG", progressive=True, **options)
    data = file.getvalue()
    starts = [found.start() for found in re.finditer(b"\xff\xda", data)]
    return data[:-2] + data[starts[-1] : -2] * (scans - len(starts)) + b"\xff\xd9"


def tiff(tags: dict[int, list[int]], body: bytes) -> bytes:
    """One page; offsets in `tags` count from the start of `body`."""
    more, entries, start = b"", b"", 8 + 2 + 12 * len(tags) + 4
    size = start + sum(4 * len(values) for values in tags.values() if len(values) > 1)
    for tag, values in sorted(tags.items()):
        shifted = [value + size for value in values] if tag in (273, 324) else values
        packed = struct.pack(f"<{len(values)}I", *shifted)
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += packed if len(values) == 1 else struct.pack("<I", start + len(more))
        more += packed if len(values) > 1 else b""
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + more + body


GREY = {258: [8], 259: [1], 262: [1], 277: [1]}


@pytest.mark.parametrize(
    ("name", "data", "detail"),
    [
        ("a.jpg", progressive(1000, 1000), "more than 100 scans"),
        ("a.jpg", progressive(8000, 40), "more than 31 scans"),
        (
            "a.tif",
            tiff(
                {256: [64], 257: [64], 258: [8], 259: [7], 262: [6], 277: [3], 273: [0], 279: [9]}, progressive(64, 200)
            ),
            "more than 100 scans",
        ),
        (
            "a.tif",
            tiff(
                GREY | {256: [100], 257: [100], 259: [8], 322: [30_000], 323: [30_000], 324: [0], 325: [9]}, b"\0" * 9
            ),
            "tiles of 30000x30000 pixels",
        ),
        (
            "a.tif",
            tiff(
                GREY | {256: [4000], 257: [1000], 322: [4], 323: [4], 324: [0] * 250_000, 325: [16] * 250_000},
                b"\0" * 16,
            ),
            "250000 tiles",
        ),
        ("a.pgm", b"P2 9000 9000 255\n" + b"0 " * 1000, "9000x9000 pixels as plain text or with an odd maximum"),
        ("a.ppm", b"P6 9000 9000 31\n" + b"\0" * 1000, "9000x9000 pixels as plain text or with an odd maximum"),
    ],
    ids=["scans", "pixels-times-scans", "tiff-scans", "tile", "tiles", "text", "maximum"],
)
def test_what_would_take_minutes_or_gigabytes_is_dropped_by_its_header(
    name: str, data: bytes, detail: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    started = time.process_time()
    assert open_image(tmp_path / name) == Drop("too costly to decode", detail)
    assert time.process_time() - started < 3


def test_what_encoders_write_is_read(tmp_path: Path) -> None:
    """Progressive JPEG with a preview in it and another image after it, tiled TIFF, an animation of many frames."""
    exif = Image.Exif()
    preview = progressive(160, 60)[:60_000]
    exif[0x927C] = preview  # a maker's note
    image = Image.effect_noise((300, 200), 90).convert("RGB")
    file = io.BytesIO()
    image.save(file, "JPEG", progressive=True, exif=exif.tobytes())
    (tmp_path / "a.jpg").write_bytes(file.getvalue() + b"\xff\xda" * 500)
    assert rgb(tmp_path / "a.jpg").shape == (200, 300, 3)
    tiles = {256: [64], 257: [48], 322: [32], 323: [16], 324: [512 * i for i in range(6)], 325: [512] * 6}
    (tmp_path / "a.tif").write_bytes(tiff(GREY | tiles, bytes(range(256)) * 12))
    assert rgb(tmp_path / "a.tif").shape == (48, 64, 3)
    frames = [Image.new("L", (40, 30), i % 256) for i in range(1000)]
    for suffix in ("gif", "webp", "png"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=10)
        started = time.process_time()
        assert rgb(tmp_path / f"a.{suffix}").max() < 10
        assert time.process_time() - started < 3


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**31)
    drop = open_image(tmp_path / "a.png")
    assert drop == Drop("file too large", f"{2**31} bytes")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png-16", "png-16-rgba", "png-rgba", "jpeg-progressive", "webp", "tiff-float"])
def test_the_largest_images_take_less_than_a_gigabyte(kind: str, tmp_path: Path) -> None:
    side, path = 9459, tmp_path / kind
    if kind.startswith("png"):
        path.write_bytes(empty_png(side, 16 if "16" in kind else 8, 4 if "rgba" in kind else 1))
        assert path.stat().st_size < 800_000
    elif kind == "webp":
        Image.new("RGB", (7900, 7900)).save(path, "WEBP", lossless=True, method=0)
    elif kind == "tiff-float":
        Image.new("F", (side, side), 3.5).save(path, "TIFF", compression="tiff_lzw")
    else:
        path.write_bytes(progressive(side, 20, subsampling=0))
    code = (
        "import re, sys; from mpa_edge.images.folder import open_image; import numpy, PIL.Image; "
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); before = peak(); "
        "image = open_image(sys.argv[1]); print(image.mode, (peak() - before) * 1024)"
    )
    made = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=120)
    mode, peak = made.stdout.split()
    assert (mode, int(peak) < 1_100_000_000) == ("RGB", True), peak


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("white", [255, 1023, 4095, 16383, 65535])
def test_a_16_bit_file_is_scaled_by_the_bits_it_uses(white: int, channels: int, tmp_path: Path) -> None:
    ramp = np.linspace(0, white, 1600 * 900).reshape(900, 1600).astype(np.uint16)
    values = ramp if channels == 1 else np.stack([ramp] * channels, axis=-1)
    if channels in (2, 4):
        values[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(png_of(values))
    off = np.abs(rgb(tmp_path / "a.png").astype(float) - (ramp * (255 / white))[..., None])
    assert off.max() <= (0.5 if white < 65535 or channels == 1 else 1.0) + 1e-6


def test_white_as_the_file_states_it(tmp_path: Path) -> None:
    """A dark image stays dark where its file says what white is."""
    dark = np.full((4, 4), 1000, np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5 4 4 65535\n" + dark.astype(">u2").tobytes())
    assert rgb(tmp_path / "a.pgm").max() == 4
    (tmp_path / "b.pgm").write_bytes(b"P5 4 4 2000\n" + dark.astype(">u2").tobytes())
    assert rgb(tmp_path / "b.pgm").max() == 128
    for tag, white, expected in ((341, 65535, 4), (281, 4000, 64), (281, 1, 249)):
        Image.fromarray(dark).save(tmp_path / "a.tif", tiffinfo={tag: white})
        assert rgb(tmp_path / "a.tif").max() == expected


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_of_12_bits_in_a_tiff(mode: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype("<u2")
    values = np.stack([ramp, ramp[::-1], ramp.T, np.full_like(ramp, 65535)], axis=-1)[..., : len(mode)]
    tags = {256: [64], 257: [64], 258: [16] * len(mode), 259: [1], 262: [2], 273: [0], 277: [len(mode)], 278: [64]}
    tags |= {279: [values.nbytes], 338: [2]} if mode == "RGBA" else {279: [values.nbytes]}
    (tmp_path / "a.tif").write_bytes(tiff(tags, values.tobytes()))
    assert np.abs(rgb(tmp_path / "a.tif") - values[..., :3] * (255 / 4095)).max() <= 0.5 + 1e-6


def test_large_images_are_converted_as_small_ones_are(tmp_path: Path) -> None:
    """Work is done in strips, which must not show."""
    values = np.random.default_rng(0).integers(0, 256, (1500, 1000, 4), np.uint8)
    Image.fromarray(values, "RGBA").save(tmp_path / "a.png")
    layer = Image.fromarray(values, "RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    assert (rgb(tmp_path / "a.png") == np.asarray(expected)).all()


@pytest.mark.parametrize("size", [1_500_000, 5_000_000])
@pytest.mark.parametrize("what", ["icc", "xmp", "text", "exif"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_metadata_larger_than_the_image_costs_nothing(suffix: str, what: str, size: int, tmp_path: Path) -> None:
    path, image = tmp_path / f"a.{suffix}", Image.effect_noise((64, 48), 90).convert("RGB")
    size = 60_000 if suffix == "jpg" and what != "icc" else size  # what its segments can hold
    options: dict[str, object] = {"icc_profile": os.urandom(size)} if what == "icc" else {"xmp": b"x" * size}
    if what == "exif":
        exif = Image.Exif()
        exif[0x0112], exif[0x9286] = 6, b"x" * size
        options = {"exif": exif.tobytes()}
    elif suffix == "png" and what in ("text", "xmp"):
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", "x" * size, zip=True)
        texts.add_text("Comment", "x" * size, zip=what == "text")
        options = {"pnginfo": texts}
    image.save(path, **options)
    turned = image.transpose(Image.Transpose.ROTATE_270) if what == "exif" else image
    shown = rgb(path)
    assert shown.shape == np.asarray(turned).shape
    if suffix in ("png", "tif"):
        assert (shown == np.asarray(turned)).all()
