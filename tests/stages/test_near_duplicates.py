"""Near-duplicates: what is linked, what is not, and a video that a naive split would cut in two."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance

from mpa_edge.config.recipe import Recipe
from mpa_edge.images.folder import scan
from mpa_edge.images.index import ImageEntry
from mpa_edge.nursery.render import pictures
from mpa_edge.stages.holdout import choose
from mpa_edge.stages.near_duplicates import NEAR, ROW_BYTES, hashes_of, linked, perceptual_hash
from tests.stages.conftest import recipe_with

FRAMES, OTHERS = 300, 300
SIZE = (160, 120)


def scene(seed: int, width: int = SIZE[0], height: int = SIZE[1]) -> Image.Image:
    """Clouds of several sizes, different for every seed."""
    rng, image = np.random.default_rng(seed), np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24):
        layer = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        image += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), float) / cells**0.5
    return Image.fromarray((255 * (image - image.min()) / np.ptp(image)).astype(np.uint8))


def frame(number: int) -> Image.Image:
    """A camera that turns slowly over a wide scene, with noise: the last frame shows nothing of the first."""
    left = number
    image = np.asarray(_WIDE.crop((left, 0, left + SIZE[0], SIZE[1])), float)
    noise = np.random.default_rng(number).normal(0, 4, image.shape)
    return Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8))


_WIDE = scene(7, SIZE[0] + FRAMES, SIZE[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 frames of a video and 300 other images, in a random order of names."""
    made, names = tmp_path_factory.mktemp("video"), list(range(FRAMES + OTHERS))
    random.Random(0).shuffle(names)
    for i, name in enumerate(names):
        image = frame(i) if i < FRAMES else scene(1000 + i)
        image.save(made / f"{name:03d}-{'video' if i < FRAMES else 'other'}-{i}.png", compress_level=1)
    return made


@pytest.fixture(scope="module")
def hashes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.uint64]:
    return hashes_of(scan(folder), tmp_path_factory.mktemp("run") / "hashes", 10**8)


def recipe(group: str) -> Recipe:
    return recipe_with(task="okvqa", images__group=group, evaluate__n=60, annotate__samples_per_image=4)


def sides(folder: Path, run: Path, group: str) -> tuple[set[int], set[int]]:
    """(numbers of the frames in training, of those held out)."""
    entries = scan(folder)
    held_out = dict(choose(run, recipe(group), entries, "").groups)
    parts = [(int(entry.name.rpartition("-")[2][:-4]), entry.id in held_out) for entry in entries]
    return tuple({i for i, out in parts if i < FRAMES and out is side} for side in (False, True))  # type: ignore[return-value]


def test_a_video_is_one_group_and_other_images_are_none(folder: Path, hashes: NDArray[np.uint64]) -> None:
    groups = linked(hashes)
    numbers = np.array([int(entry.name.rpartition("-")[2][:-4]) for entry in scan(folder)])
    assert len(set(groups[numbers < FRAMES].tolist())) == 1
    assert len(set(groups[numbers >= FRAMES].tolist())) == OTHERS
    first, last = (hashes[numbers == i][0] for i in (0, FRAMES - 1))
    assert np.bitwise_count(first ^ last).sum() > 2 * NEAR  # only the frames between them link them


def test_a_naive_split_puts_neighbours_on_both_sides(folder: Path, tmp_path: Path) -> None:
    train, held_out = sides(folder, tmp_path, "none")
    beside = [bool({i - 1, i + 1} & train) for i in held_out]
    assert len(beside) > 10
    assert sum(beside) > 0.9 * len(beside)
    train, held_out = sides(folder, tmp_path, "auto")
    assert (len(train), len(held_out)) == (FRAMES, 0)


def by_heart(folder: Path, run: Path, group: str) -> float:
    """Share of held-out images whose answer a model knows that has learned all others by heart.

    The answer is random for each of 30 parts of the video, and for each other image: nothing can be learned but by
    heart. It says what it has learned about the nearest image.
    """
    entries = scan(folder)
    held_out = dict(choose(run, recipe(group), entries, "").groups)
    answers = np.array([_answer(entry) for entry in entries])
    hashes, out = hashes_of(entries, run / "all", 10**8), np.array([entry.id in held_out for entry in entries])
    apart = np.bitwise_count(hashes[out][:, None] ^ hashes[~out][None]).sum(axis=2)
    return float((answers[~out][apart.argmin(axis=1)] == answers[out]).mean())


def _answer(entry: ImageEntry) -> int:
    number = int(entry.name.rpartition("-")[2][:-4])
    return random.Random(number // 10 if number < FRAMES else 1000 + number).randrange(10)


def test_a_naive_split_overstates_and_ours_does_not(folder: Path, tmp_path: Path) -> None:
    assert by_heart(folder, tmp_path, "none") > 0.4  # half of the images are frames
    assert by_heart(folder, tmp_path, "auto") < 0.25  # one in ten is luck


def test_copies_are_near_and_charts_of_one_style_are_not() -> None:
    image = scene(1, 640, 480)
    changed = [image.resize((200, 150)), ImageEnhance.Brightness(image).enhance(1.2), image.crop((3, 3, 637, 477))]
    with_object = image.copy()
    ImageDraw.Draw(with_object).ellipse((200, 200, 230, 230), fill="red")
    for other in (*changed, with_object):
        assert np.bitwise_count(perceptual_hash(image) ^ perceptual_hash(other)).sum() <= NEAR
    charts = [perceptual_hash(picture.image) for picture in pictures(500, 3, "target")]
    assert len(set(linked(np.stack(charts)).tolist())) == 500


def test_groups_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2**64, (40, 4), dtype=np.uint64)
    near = []
    for _ in range(400):  # trees of images that differ by few bits from an earlier one
        bits = np.unpackbits(rows[rng.integers(len(rows))].view(np.uint8))
        bits[rng.choice(256, rng.integers(0, 16), replace=False)] ^= 1
        near.append(np.packbits(bits).view(np.uint64))
        rows = np.vstack([rows, near[-1]])
    found = linked(rows)
    apart = np.bitwise_count(rows[:, None] ^ rows[None]).sum(axis=2)
    wanted = np.arange(len(rows))
    for _ in range(len(rows)):
        again = np.array([wanted[apart[i] <= NEAR].min() for i in range(len(rows))])
        if (again == wanted).all():
            break
        wanted = again
    assert len(set(wanted.tolist())) == 40
    assert (np.unique(wanted, return_inverse=True)[1] == found).all()


def test_no_image_is_hashed_twice_and_a_torn_row_is_repaired(
    folder: Path, hashes: NDArray[np.uint64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries, stored = list(scan(folder))[:20], tmp_path / "run" / "hashes"
    hashes_of(entries[:15], stored, 10**8)
    stored.write_bytes(stored.read_bytes()[: 10 * ROW_BYTES + 13])
    seen = []
    monkeypatch.setattr(
        "mpa_edge.stages.near_duplicates.open_image", lambda path, most: seen.append(path.name) or Image.open(path)
    )
    assert (hashes_of(entries, stored, 10**8) == hashes[:20]).all()
    assert sorted(seen) == sorted(entry.name for entry in entries[10:])
    assert (hashes_of(entries[::-1], stored, 10**8) == hashes[:20][::-1]).all()
    assert len(seen) == 10


def test_an_image_that_cannot_be_read_is_a_group_of_its_own(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(b"no image %d" % i)
    assert linked(hashes_of(scan(tmp_path), tmp_path / "hashes", 10**8)).tolist() == [0, 1]
