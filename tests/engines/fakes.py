"""A model for many processes: says what an image's number tells, keeps a diary, and fails where it is told to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from mpa_edge.errors import MpaError
from mpa_edge.tasks import get_task
from mpa_edge.types import Reply, Request

PROMPTS = get_task("minicharts").annotation_prompts
STUDENT_WRONG_EVERY = 3


@dataclass(frozen=True)
class Orders:
    """What happens at which image, in whatever process it is asked about."""

    diary: Path
    """Folder in which each process writes the numbers of its images."""
    pause_s: float = 0.0
    """Each time it is asked."""
    kills_once: tuple[int, ...] = ()
    """The process that meets it first is killed."""
    kills: tuple[int, ...] = ()
    """Every process that meets it is killed."""
    fails: tuple[int, ...] = ()
    """An error each time."""
    fails_once: tuple[int, ...] = ()
    """An error at the first time."""


def number_of(image: Image.Image) -> int:
    """Which image it is: its first pixel says so."""
    red, green, _ = image.getpixel((0, 0))  # type: ignore[misc]
    return int(red) + 256 * int(green)


def draw(folder: Path, n: int) -> Path:
    """n small images, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new("RGB", (8, 8), (i % 256, i // 256, 7)).save(folder / f"{i:05d}.png")
    return folder


class FakeVLM:
    """The same answer to the same request, in every process."""

    def __init__(self, name: str, orders: Orders) -> None:
        self.name, self.orders = name, orders
        (orders.diary / f"{name}-{os.getpid()}.loaded").touch()

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        numbers = dict.fromkeys(number_of(request.image) for request in requests)
        time.sleep(self.orders.pause_s)
        for number in numbers:
            self._obey(number)
        with (self.orders.diary / f"{self.name}-{os.getpid()}.asked").open("a") as file:
            file.writelines(f"{n}\n" for n in numbers)
        return [Reply(self._says(request), "stop", 3) for request in requests]

    def _obey(self, number: int) -> None:
        orders = self.orders
        if number in orders.kills or (number in orders.kills_once and self._first("kill", number)):
            os.kill(os.getpid(), signal.SIGKILL)
        if number in orders.fails or (number in orders.fails_once and self._first("fail", number)):
            raise ValueError(f"image {number} is too much")

    def _first(self, what: str, number: int) -> bool:
        try:
            (self.orders.diary / f"{what}-{number}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _says(self, request: Request) -> str:
        number = number_of(request.image)
        if request.prompt in PROMPTS:
            return f"Question: Which number has image {number}?\nAnswer: {number}"
        return str(number + (self.name == "student" and number % STUDENT_WRONG_EVERY == 0))

    def close(self) -> None:
        """Nothing to free."""


def loader(orders: Orders) -> Callable[..., FakeVLM]:
    """Stands in for `load`, also in other processes."""
    return partial(fake_load, orders)


def fake_load(orders: Orders, _reference: str, *, name: str, **_: Any) -> FakeVLM:
    return FakeVLM(name, orders)


class Forgetful:
    """A worker that never finds a shard done: it writes the shard even if another worker has."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker

    def is_done(self, _shard: int) -> bool:
        return False

    def load(self) -> None:
        self.worker.load()
        self.worker.is_done = self.is_done

    def moved(self, folder: Path) -> Forgetful:
        return Forgetful(self.worker.moved(folder))

    def __getattr__(self, name: str) -> Any:
        if name == "worker":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.worker, name)


def no_model(_reference: str, **_: Any) -> FakeVLM:
    """What `load` does where a user named a model that is not there."""
    raise MpaError("no such model: name another one")
