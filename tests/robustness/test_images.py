"""Folders that nobody checked: broken files, and images of things that the teacher has never seen."""

from __future__ import annotations

import json
import random
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from mpa_edge.nursery.render import render
from mpa_edge.runs.manifest import read_manifest
from mpa_edge.runs.parquet import read_dropped
from tests.images.test_decode import progressive

pytestmark = pytest.mark.slow


def bomb(path: Path) -> None:
    """A PNG that announces 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))


def break_everything(folder: Path, sound: Path) -> None:
    """One file of every kind that goes wrong, or that must not."""
    image = Image.open(sound).convert("RGB")
    (folder / "b-truncated.png").write_bytes(sound.read_bytes()[: sound.stat().st_size // 2])
    (folder / "b-empty.png").write_bytes(b"")
    bomb(folder / "b-bomb.png")
    (folder / "b-text.png").write_text("I am not an image\n")
    (folder / "b-folder.png").mkdir()
    (folder / "b-scans.jpg").write_bytes(progressive(1000, 1000))
    (folder / "b-link.png").symlink_to("nowhere.png")
    (folder / "b-vector.svg").write_text("<svg/>")
    (folder / "notes.txt").write_text("not looked at\n")
    image.convert("CMYK").save(folder / "g-cmyk.jpg")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "g-16bit.png")
    frames = [image, image.rotate(180)]
    frames[0].save(folder / "g-moving.gif", save_all=True, append_images=frames[1:])
    (folder / "z-copy.png").write_bytes(sound.read_bytes())


def test_broken_files_are_counted_and_cost_nothing_else(forks, set_arguments, tmp_path) -> None:
    folder = render(tmp_path / "images", 20, 7, "target")
    break_everything(folder, sorted(folder.glob("*.png"))[0])
    ended = forks(
        "align", "--images", str(folder), "--out", str(tmp_path / "run"), "--json", *set_arguments(level__max_steps=2)
    )
    assert ended.rc == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["images"] == 20 + 3
    reasons = {row.image: row.reason for row in read_dropped(tmp_path / "run" / "1-annotate") if row.id == row.image}
    assert reasons == {
        "b-truncated.png": "damaged image",
        "b-empty.png": "empty file",
        "b-bomb.png": "too many pixels",
        "b-text.png": "not an image",
        "b-folder.png": "not a regular file",
        "b-scans.jpg": "too costly to decode",
        "b-link.png": "unreadable file",
        "b-vector.svg": "unsupported image type",
        "z-copy.png": "duplicate image",
    }
    assert all(report["dropped"][reason] >= 1 for reason in reasons.values())
    assert "Traceback" not in ended.stderr


def test_nothing_but_broken_files(forks, set_arguments, tmp_path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    (folder / "b.png").write_text("text")
    ended = forks("align", "--images", str(folder), "--out", str(tmp_path / "run"), *set_arguments())
    assert ended.rc == 1
    assert "not one question with an answer (empty file, not an image)" in ended.last
    assert "use images that can be read" in ended.last
    assert "empty file: 1" in ended.stderr
    assert "Traceback" not in ended.stderr


def photographs(folder: Path, n: int) -> Path:
    """Noise, gradients and skylines: nothing that the teacher has learned to read."""
    rng, noise = random.Random(3), np.random.default_rng(3)
    folder.mkdir()
    for i in range(n):
        size = rng.choice([(640, 480), (480, 640), (1200, 300), (333, 777)])
        if i % 3 == 0:
            image = Image.fromarray(noise.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
        else:
            image = Image.linear_gradient("L").resize(size).convert("RGB")
            draw = ImageDraw.Draw(image)
            for x in range(0, size[0], 40):
                top = rng.randrange(size[1] // 4, size[1] - 10)
                draw.rectangle((x, top, x + rng.randrange(15, 39), size[1]), fill=tuple(rng.choices(range(256), k=3)))
            image = image.filter(ImageFilter.GaussianBlur(rng.random() * 4))
        image.save(folder / f"photo-{i:03d}.jpg", quality=rng.randrange(40, 95))
    return folder


def test_photographs_run_through(forks, set_arguments, tmp_path) -> None:
    """Whatever the teacher says about them: a clear end, annotations kept, and the second call knows it all."""
    folder, out = photographs(tmp_path / "photos", 12), tmp_path / "run"
    command = ("align", "--images", str(folder), "--out", str(out), *set_arguments(level__min_gap=64))
    ended = forks(*command)
    assert ended.rc == 1, ended.stderr
    assert "gap items" in ended.last
    assert "level.min_gap is 64" in ended.last
    assert ended.stdout == ""
    manifest = read_manifest(out / "1-annotate")
    assert manifest is not None
    assert manifest.counts["images"] == 12
    assert read_manifest(out / "2-identify") is not None
    assert not (out / "3-level").exists()
    started = time.monotonic()
    again = forks(*command)
    assert time.monotonic() - started < 2
    assert again.last == ended.last
    assert "annotate: already done, nothing changed" in again.stderr
    assert "identify: already done, nothing changed" in again.stderr


def test_images_removed_between_stages(forks, set_arguments, tmp_path) -> None:
    folder, out = render(tmp_path / "images", 6, 7, "target"), tmp_path / "run"
    assert forks("annotate", "--images", str(folder), "--out", str(out), *set_arguments()).rc == 0
    gone = sorted(folder.glob("*.png"))[0]
    gone.rename(tmp_path / "elsewhere.png")
    ended = forks("identify", str(out))
    assert ended.rc == 1
    assert "was readable before and is not now" in ended.last
    assert len(ended.stderr.strip().splitlines()) == 1
    (tmp_path / "elsewhere.png").rename(gone)
    assert forks("identify", str(out)).rc == 0
