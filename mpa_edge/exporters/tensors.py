"""Which weights of a checkpoint end in which component, from the headers of its safetensors files alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from mpa_edge.errors import MpaError

Place = Literal["vision", "embed", "language", "head"]

_VISION = re.compile(r"(^|\.)(vision_model|vision_tower|visual|connector|multi_modal_projector|mlp1)\.")
_LAYER = re.compile(r"(^|\.)(layers|layer|blocks)\.(\d+)\.")
# a table that is looked up, never multiplied
_POSITIONS = re.compile(r"pos(ition)?_embed|class_embedding|cls_token|mask_token")


@dataclass(frozen=True)
class Weight:
    """One tensor of a checkpoint."""

    name: str
    """As the checkpoint calls it."""
    shape: tuple[int, ...]
    """As torch writes it."""
    place: Place
    """Part of the model."""

    @property
    def n(self) -> int:
        """Numbers in it."""
        return prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it is multiplied with, so that quantizers take it; convolutions, norms, biases and tables are not."""
        return len(self.shape) == 2 and self.place != "embed" and not _POSITIONS.search(self.name)

    @property
    def is_onnx_matrix(self) -> bool:
        """The same in our graphs, where Qwen's convolution over whole patches is a matrix."""
        return self.is_matrix or len(self.shape) == 5

    @property
    def layer(self) -> int | None:
        """Number of the layer that it belongs to."""
        found = _LAYER.search(self.name)
        return int(found[3]) if found else None


def read_weights(checkpoint: Path) -> list[Weight]:
    """Every tensor that takes part when a picture is asked about. MpaError where a file is damaged."""
    from safetensors import SafetensorError, safe_open

    found = []
    for path in sorted(checkpoint.glob("*.safetensors")):
        try:
            with safe_open(path, "numpy") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise MpaError(f"{path} is damaged ({error}): copy the checkpoint again") from error
        found += [Weight(name, shape, place_of(name)) for name, shape in shapes.items()]
    return found


def place_of(name: str) -> Place:
    """Part of the model that a tensor belongs to.

    >>> place_of("model.connector.modality_projection.proj.weight"), place_of("model.text_model.embed_tokens.weight")
    ('vision', 'embed')
    >>> place_of("lm_head.weight"), place_of("model.language_model.layers.0.mlp.up_proj.weight")
    ('head', 'language')
    """
    if _VISION.search(name):
        return "vision"
    if name.endswith("embed_tokens.weight"):
        return "embed"
    return "head" if name.endswith("lm_head.weight") else "language"


def used(weights: list[Weight], config: dict[str, Any]) -> Iterator[Weight]:
    """Without what the model never reads: layers behind the one whose features it takes, and the tower's own head.

    A tied output matrix is read as the table of embeddings that it is.
    """
    tower = [weight for weight in weights if weight.place == "vision" and ".head." not in weight.name]
    n_layers = 1 + max((weight.layer or 0 for weight in tower), default=0)
    last = n_layers + 1 + _feature_layer(config) if _feature_layer(config) < 0 else _feature_layer(config)
    yield from (weight for weight in tower if weight.layer is None or weight.layer < last)
    yield from (weight for weight in weights if weight.place in ("embed", "language"))
    if not is_tied(config):
        yield from (weight for weight in weights if weight.place == "head")


def is_tied(config: dict[str, Any]) -> bool:
    """Whether the output matrix is the table of embeddings."""
    text = config.get("text_config") or {}
    return bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))


def _feature_layer(config: dict[str, Any]) -> int:
    """Index into the hidden states of the vision tower, of which the first is its input; the last one of several."""
    asked = config.get("vision_feature_layer", -1)
    layers = [asked] if isinstance(asked, int) else list(asked)
    return max(layers, key=lambda layer: (layer < 0, layer))
