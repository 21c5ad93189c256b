from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpa_edge.nursery import world
from mpa_edge.nursery.draw import HEIGHT_PX, WIDTH_PX
from mpa_edge.nursery.render import ALL_ANSWERS, ANSWERS, MARK, pictures, questions_of, render
from mpa_edge.types import Sample


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.*"))}


def samples(folder: Path) -> list[Sample]:
    return [Sample.model_validate(json.loads(line)) for line in (folder / ANSWERS).read_text().splitlines()]


def test_the_same_order_gives_the_same_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    one, two = (content(render(tmp_path / name, 12, 7, "target", ALL_ANSWERS)) for name in "ab")
    assert one == two
    names = [name for name in one if name.endswith(".png")]
    assert names == [f"minichart-7-{i:06d}.png" for i in range(12)] == [p.name for p in pictures(12, 7, "target")]
    for name in names:
        with Image.open(tmp_path / "a" / name) as image:
            assert (image.size, image.mode) == ((WIDTH_PX, HEIGHT_PX), "RGB")


def test_picture_i_does_not_depend_on_how_many_there_are() -> None:
    few, many = list(pictures(3, 7, "mixed")), list(pictures(6, 7, "mixed"))
    assert [p.image.tobytes() for p in few] == [p.image.tobytes() for p in many[:3]]


def test_a_second_call_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render(tmp_path, 4, 7, "plain")
    monkeypatch.setattr("mpa_edge.nursery.render.paint", lambda *_: pytest.fail("drew again"))
    render(tmp_path, 4, 7, "plain")


@pytest.mark.parametrize("loss", ["mark", "picture", "half a picture and no mark", "damaged mark"])
def test_what_is_lost_is_made_again(tmp_path: Path, loss: str) -> None:
    before = content(render(tmp_path, 5, 3, "target", 2))
    if loss != "picture":
        (tmp_path / MARK).write_text("{") if loss == "damaged mark" else (tmp_path / MARK).unlink()
    if loss.startswith("half"):
        (tmp_path / "minichart-3-000004.png").write_bytes(b"\x89PNG")
    elif loss == "picture":
        (tmp_path / "minichart-3-000002.png").unlink()
    assert content(render(tmp_path, 5, 3, "target", 2)) == before


def test_another_order_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    render(tmp_path / "used", 9, 3, "target", 2)
    (tmp_path / "used" / "mine.png").write_bytes(b"not ours")
    render(tmp_path / "used", 4, 4, "plain")
    render(tmp_path / "fresh", 4, 4, "plain")
    assert content(tmp_path / "used").keys() - {"mine.png"} == content(tmp_path / "fresh").keys()
    render(tmp_path / "used", 2, 4, "plain")
    assert len(list((tmp_path / "used").glob("minichart-*"))) == 2
    assert (tmp_path / "used" / "mine.png").read_bytes() == b"not ours"


def test_answers_are_samples_with_the_truth_of_their_picture(tmp_path: Path) -> None:
    render(tmp_path, 20, 11, "mixed", ALL_ANSWERS)
    scenes = {picture.name: picture.scene for picture in pictures(20, 11, "mixed")}
    rows = samples(tmp_path)
    assert len({row.id for row in rows}) == len(rows)
    assert {row.image for row in rows} == set(scenes)
    assert len(rows) == sum(len(world.questions(scene)) for scene in scenes.values())
    for row in rows:
        assert row.answers == (world.truth(scenes[row.image], row.question),)
        assert row.kind in {qa.kind for qa in world.questions(scenes[row.image])}


def test_fewer_answers_are_spread_over_the_kinds_and_none_means_no_file(tmp_path: Path) -> None:
    picture = next(pictures(1, 5, "plain"))
    rows = questions_of(picture, 5, 3)
    assert len(rows) == len({row.kind for row in rows}) == 3
    assert questions_of(picture, 5, 3) == rows
    render(tmp_path, 2, 5, "plain")
    assert not (tmp_path / ANSWERS).exists()


def test_seeds_and_styles_share_no_picture() -> None:
    drawn = [
        p.image.tobytes() for seed in (7, 8, 77) for style in ("plain", "target") for p in pictures(60, seed, style)
    ]
    assert len(set(drawn)) == len(drawn) == 360


def test_mixed_has_both_styles_and_the_others_only_their_own() -> None:
    def corner(style: str) -> np.ndarray:
        return np.array([np.asarray(p.image, int)[0, 0].sum() for p in pictures(80, 1, style)])

    assert (corner("plain") > 700).mean() > 0.8  # the rest are signs whose panel reaches the corner
    dark = {style: (corner(style) < 250).mean() for style in ("plain", "mixed", "target")}
    assert dark["plain"] < 0.05 < 0.15 < dark["mixed"] < 0.45 < dark["target"]
