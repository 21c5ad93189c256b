"""What the tests of the stages share: a model that answers from a function, images, a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mpa_edge.config.library import apply_overrides, load_recipe
from mpa_edge.config.recipe import Recipe
from mpa_edge.stages import evaluate, identify, silver
from mpa_edge.stages.annotate import stage as annotate
from mpa_edge.stages.run import Run
from mpa_edge.types import Reply, Request


@dataclass
class FakeVLM:
    """Answers with a function of the request: a text, or (text, finish reason)."""

    name: str
    says: Callable[[Request], Any]
    asked: list[Request] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    closed: bool = False

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        assert not self.closed
        self.asked += requests
        self.batches.append(len(requests))
        said = [self.says(request) for request in requests]
        pairs = [(one, "stop") if isinstance(one, str) else one for one in said]
        return [Reply(text, reason, n_tokens=3) for text, reason in pairs]

    def close(self) -> None:
        self.closed = True


@dataclass
class Shelf:
    """Stands in for `load`: hands out fakes by name, and knows how many are open at once."""

    says: dict[str, Callable[[Request], Any]]
    loaded: list[FakeVLM] = field(default_factory=list)
    most_open: int = 0

    def __call__(self, reference: str, *, name: str, **_: Any) -> FakeVLM:
        vlm = FakeVLM(name, self.says[name])
        self.loaded.append(vlm)
        self.most_open = max(self.most_open, sum(not one.closed for one in self.loaded))
        return vlm

    def asked(self, name: str) -> list[Request]:
        return [request for vlm in self.loaded if vlm.name == name for request in vlm.asked]


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Shelf]:
    """shelf(teacher=function, student=function, ...): what `load` gives in every stage."""

    def put(**says: Callable[[Request], Any]) -> Shelf:
        made = Shelf(says)
        for module in (annotate, identify, evaluate, silver):
            monkeypatch.setattr(module, "load", made)
        return made

    return put


def number_of(request: Request) -> int:
    """Which image a request is about: its number is its red."""
    return int(request.image.getpixel((0, 0))[0])


@pytest.fixture
def images_folder(tmp_path: Path) -> Path:
    """Six images; the red of image i is i."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    return folder


def recipe_with(**changed: Any) -> Recipe:
    """The built-in recipe, `annotate__votes=2` changed."""
    raw = apply_overrides(load_recipe("minicharts").model_dump(mode="json"), ["images.render=null"])
    for key, value in changed.items():
        section, _, name = key.partition("__")
        raw[section] = raw[section] | {name: value} if name else value
    return Recipe.model_validate(raw)


@pytest.fixture
def make_run(tmp_path: Path, images_folder: Path) -> Callable[..., Run]:
    """make_run(annotate__votes=2) -> a run over the six images, two in a shard."""

    def make(folder: str = "run", limit: int | None = None, **changed: Any) -> Run:
        changed = {"annotate__shard_size": 2, "annotate__samples_per_image": 5} | changed
        return Run(tmp_path / folder, recipe_with(**changed), images=str(images_folder), limit=limit)

    return make
