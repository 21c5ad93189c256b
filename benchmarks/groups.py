"""Grouping near-duplicates of very many images: seconds and memory of hashing and of linking.

    python benchmarks/groups.py --images 100000

A quarter of the images are videos of 300 frames, whose hashes differ in six bits from frame to frame; the others have
nothing in common. Hashing is measured on drawn photographs of one million pixels, decoding and hashing apart, and
multiplied. Seconds are those of one processor. Nothing is written but a JSON line.
"""

from __future__ import annotations

import io
import json
import time

import click
import numpy as np
from common import machine
from PIL import Image

from mpa_edge.runs.memory import peak_rss_bytes
from mpa_edge.stages.near_duplicates import WORDS, Hashes, linked, perceptual_hash

FRAMES, FLIPS, PHOTOS = 300, 6, 100


def made_up(images: int) -> tuple[Hashes, int]:
    """(hashes in a random order, number of groups that there should be)."""
    rng, videos = np.random.default_rng(0), images // 4 // FRAMES
    each = [rng.integers(0, 2**64, (images - videos * FRAMES, WORDS), dtype=np.uint64)]
    for _ in range(videos):
        flips = np.zeros((FRAMES, 64 * WORDS), np.uint8)
        for frame in flips:
            frame[rng.choice(64 * WORDS, FLIPS, replace=False)] = 1
        bits = (np.cumsum(flips, axis=0) + rng.integers(0, 2, 64 * WORDS)) % 2
        each.append(np.packbits(bits.astype(np.uint8), axis=1).view(np.uint64))
    return rng.permutation(np.concatenate(each)), images - videos * (FRAMES - 1)


def photographs() -> list[bytes]:
    """JPEG files of a million pixels."""
    rng, files = np.random.default_rng(0), []
    for _ in range(PHOTOS):
        layers = [
            Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize(
                (1152, 896), Image.Resampling.BICUBIC
            )
            for n in (5, 30, 200)
        ]
        image, file = Image.blend(Image.blend(*layers[:2], 0.4), layers[2], 0.2), io.BytesIO()
        image.save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def seconds_each(files: list[bytes]) -> tuple[float, float]:
    """Seconds of (decoding, hashing) one image, in one thread."""
    decoding = hashing = 0.0
    for data in files:
        began = time.process_time()
        image = Image.open(io.BytesIO(data)).convert("RGB")
        decoded = time.process_time()
        perceptual_hash(image)
        decoding, hashing = decoding + decoded - began, hashing + time.process_time() - decoded
    return decoding / len(files), hashing / len(files)


@click.command(help=__doc__)
@click.option("--images", default=100_000, show_default=True)
def main(images: int) -> None:
    files = photographs()
    seconds_each(files[:5])  # the first call imports the libraries
    decode_s, hash_s = seconds_each(files)
    hashes, groups = made_up(images)
    before, began = peak_rss_bytes(), time.process_time()
    found = linked(hashes)
    link_s = time.process_time() - began
    figures = {
        "images": images,
        "decode_s": round(decode_s * images, 1),
        "hash_s": round(hash_s * images, 1),
        "link_s": round(link_s, 1),
        "link_extra_bytes": peak_rss_bytes() - before,
        "groups": len(np.unique(found)),
        "groups_planted": groups,
    }
    click.echo(json.dumps(figures | machine()))


if __name__ == "__main__":
    main()
