"""Images of the built-in world as files, with or without questions about them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mpa_edge.errors import MpaError
from mpa_edge.nursery import world
from mpa_edge.nursery.draw import STYLES, paint
from mpa_edge.runs.files import disk_errors, make_folder, read_json, write_bytes, write_json
from mpa_edge.runs.paths import new_file, remove
from mpa_edge.types import Sample

if TYPE_CHECKING:
    from PIL.Image import Image

MARK = ".rendered.json"
ANSWERS = "answers.jsonl"
NAME = re.compile(r"minichart-(\d+)-(\d{6,})\.png")
ALL_ANSWERS = 1000  # more than there are about any image
FileStyle = Literal["target", "plain", "mixed"]


@dataclass(frozen=True)
class Picture:
    """A drawn image and the scene that it shows."""

    name: str
    image: Image
    scene: world.Scene


def pictures(n: int, seed: int, style: FileStyle) -> Iterator[Picture]:
    """Draw n pictures; picture i depends only on (seed, style, i)."""
    for i in range(n):
        rng = random.Random(f"render-{seed}-{style}-{i}")
        scene = world.draw_scene(rng)
        chosen = rng.choice(STYLES) if style == "mixed" else style
        yield Picture(_name(seed, i), paint(scene, chosen, rng)[0], scene)


def _name(seed: int, i: int) -> str:
    return f"minichart-{seed}-{i:06d}.png"


def render(folder: Path, n: int, seed: int, style: FileStyle, answers_per_image: int = 0) -> Path:
    """Write n PNG files, and `answers.jsonl` with up to `answers_per_image` questions each; returns the folder.

    Nothing is written where the same call was completed before. Images of another call are removed.
    """
    request: dict[str, Any] = {"n": n, "seed": seed, "style": style, "answers_per_image": answers_per_image}
    if read_json(make_folder(folder) / MARK) == request and all((folder / _name(seed, i)).is_file() for i in range(n)):
        return folder
    _clear(folder, n, seed)
    samples: list[Sample] = []
    for picture in pictures(n, seed, style):
        with disk_errors(folder, 1_000_000), new_file(folder / picture.name) as file:
            picture.image.save(file, "PNG", compress_level=1)
        samples += questions_of(picture, seed, answers_per_image)
    if answers_per_image:
        lines = [json.dumps(sample.model_dump(mode="json", exclude={"group"})) + "\n" for sample in samples]
        write_bytes(folder / ANSWERS, "".join(lines).encode())
    write_json(folder / MARK, request)
    return folder


def _clear(folder: Path, n: int, seed: int) -> None:
    """Remove the mark, the answers, and the minicharts that will not be overwritten.

    MpaError where the answers are not ours: no image is there that they are about.
    """
    if (folder / ANSWERS).exists() and not any(folder.glob("minichart-*.png")):
        raise MpaError(f"{folder} has an {ANSWERS} of its own: choose another folder")
    for path in (folder / MARK, folder / ANSWERS):
        remove(path)
    for path in folder.glob("minichart-*.png"):
        found = NAME.fullmatch(path.name)
        if found and not (int(found[1]) == seed and int(found[2]) < n):
            remove(path)


def questions_of(picture: Picture, seed: int, n: int) -> list[Sample]:
    """Up to n questions about a picture with the generator's answers, spread evenly over the kinds."""
    asked = world.pick(random.Random(f"questions-{seed}-{picture.name}"), picture.scene, n)
    return [
        Sample(
            id=f"{Path(picture.name).stem}-{i}",
            image=picture.name,
            question=qa.question,
            answers=(qa.answer,),
            kind=qa.kind,
        )
        for i, qa in enumerate(asked)
    ]
