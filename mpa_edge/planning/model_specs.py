"""A model reference of a recipe -> its sizes and its image budget: from a folder's files, or from models.yaml."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.planning.image_tokens import Seen, Size, mean, seen
from mpa_edge.planning.records import model_file
from mpa_edge.planning.shapes import Config, Shapes, read_shapes
from mpa_edge.runs.files import read_json
from mpa_edge.vlm import resolve
from mpa_edge.vlm.openai.reference import is_server, parse

BYTES_ON_DISK = 2  # as checkpoints are published: fp16 or bf16
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class KnownModel:
    """What a plan knows of one model."""

    reference: str
    """As the recipe names it."""
    shapes: Shapes
    """Sizes."""
    config: Config
    """config.json."""
    image: Mapping[str, Any]
    """Values of the image processor."""
    source: str
    """Where the sizes are from."""
    here: bool
    """Whether its weights need not be fetched."""
    server: bool = False
    """Whether it answers behind a server."""

    def see(self, sizes: list[Size]) -> Seen:
        """The mean picture of those sizes."""
        return mean([seen(self.shapes, self.config, self.image, size) for size in sizes])


def known_model(reference: str) -> KnownModel:
    """The model behind a reference. MpaError where its sizes are not to be had without a hub."""
    if is_server(reference):
        return _from_table(parse(reference).model, server=True)
    folder = Path(resolve(reference))
    if not folder.is_dir():
        return _from_table(reference)
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise MpaError(f"{folder / 'config.json'} is damaged: copy the checkpoint again")
    shapes = read_shapes(config, reference)
    return KnownModel(reference, shapes, config, _image_values(folder), str(folder / "config.json"), here=True)


def _from_table(reference: str, server: bool = False) -> KnownModel:
    """A model of a hub: nothing is fetched, so only what models.yaml holds is known."""
    models = model_file().models
    entry = models.get(reference)
    if entry is None:
        near = difflib.get_close_matches(reference, models, 1, cutoff=0.8)
        tip = f"did you mean {near[0]}? Else " if near else ""
        raise MpaError(
            f"the sizes of '{reference}' are not known here: {tip}put its config.json and preprocessor_config.json "
            "into a folder and name that, --set student=DIR or --set teacher=DIR"
        )
    shapes = read_shapes(entry.config, reference)
    return KnownModel(reference, shapes, entry.config, entry.image, entry.source, here=server, server=server)


def _image_values(folder: Path) -> dict[str, Any]:
    """The image processor's values: inside processor_config.json in newer checkpoints, a file of its own in older."""
    for name in PROCESSOR_FILES:
        values = read_json(folder / name)
        if isinstance(values, dict) and (name.startswith("pre") or "image_processor" in values):
            return dict(values.get("image_processor", values))
    raise MpaError(f"'{folder}' has no {PROCESSOR_FILES[1]}: copy it from the checkpoint, it says how pictures are cut")
