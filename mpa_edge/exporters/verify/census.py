"""Is everything of the checkpoint in the files, and is it the aligned model's? Told from the weights alone.

A tensor is known again by its values: exporters rename, transpose, split and reorder, and a quantizer rounds, but a
rounded tensor still correlates with its original far better than any other one does.

What training changed is looked at on its own (`exporters.adapter`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpa_edge.config.scheme import Component
from mpa_edge.exporters.verify.adapter import Adapter
from mpa_edge.exporters.verify.weights import Look, Stored, exported, flat, look

Array = NDArray[Any]
Part = Literal["vision", "connector", "embed", "language", "head"]
TITLES: dict[Part, str] = {
    "vision": "vision tower",
    "connector": "connector",
    "embed": "token embeddings",
    "language": "language model",
    "head": "output embeddings",
}
PARTS: dict[Component, tuple[Part, ...]] = {
    "vision": ("vision", "connector"),
    "mmproj": ("vision", "connector"),
    "embed": ("embed",),
    "decoder": ("language", "head"),
    "language": ("embed", "language", "head"),
}
# two bits a weight leave a correlation of .89, another layer's weights one of .0
SAME = 0.75
SCALE = (0.7, 1.4)


@dataclass
class Count:
    """What was found of one part of the model in one component."""

    parameters: int = 0
    """In the checkpoint."""
    found: int = 0
    """Of these, in the exported file."""
    missing: list[str] = field(default_factory=list)
    """Tensors that are not in it."""
    adapter: Adapter = field(default_factory=Adapter)
    """What training changed, and how much of it is there; empty where the base is unknown."""

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        return {"parameters": self.parameters, "found": self.found, **dict(self.adapter.summary())}


Census = dict[Component, dict[Part, Count]]


def part_of(name: str) -> Part:
    """Where in the model a tensor of a checkpoint sits.

    >>> part_of("model.visual.merger.mlp.0.weight"), part_of("model.language_model.embed_tokens.weight")
    ('connector', 'embed')
    """
    if re.search(r"connector|multi_modal_projector|visual\.(deepstack_)?merger", name):
        return "connector"
    if re.search(r"vision_model|vision_tower|visual\.", name):
        return "vision"
    return "embed" if "embed_tokens" in name else "head" if "lm_head" in name else "language"


def is_used(name: str, config: dict[str, Any]) -> bool:
    """Whether a model runs a tensor at all: LLaVA takes features from inside its tower, the layers behind rest.

    >>> llava = {"model_type": "llava", "vision_feature_layer": -2, "vision_config": {"num_hidden_layers": 3}}
    >>> is_used("vision_tower.encoder.layers.1.mlp.fc1.weight", llava)
    True
    >>> is_used("vision_tower.encoder.layers.2.mlp.fc1.weight", llava)
    False
    """
    if part_of(name) != "vision" or config["model_type"] != "llava":
        return True
    if re.search(r"post_layernorm|\.head\.", name):
        return False
    chosen = config.get("vision_feature_layer", -2)
    depth = config["vision_config"]["num_hidden_layers"]
    last = max(layer % (depth + 1) for layer in (chosen if isinstance(chosen, list) else [chosen]))
    layer = re.search(r"layers\.(\d+)\.", name)
    return layer is None or int(layer[1]) < last


def take_census(
    folder: Path, files: dict[Component, str], checkpoint: Path, config: dict[str, Any], base: Path | None
) -> Census:
    """Compare the exported files with the checkpoint, and with its base where that is at hand.

    Holds one exported graph and one tensor at a time: call it in a process of its own.
    """
    aligned, before = Stored(checkpoint), Stored(base) if base else None
    tied = not any(part_of(name) == "head" for name in aligned.names)
    census: Census = {}
    for component, file in files.items():
        shelves = Shelves(exported(folder / file))
        counts = {part: Count() for part in PARTS[component]}
        for name in aligned.names:
            part = part_of(name)
            # where the checkpoint has no output embeddings, the token embeddings are both
            part = "head" if tied and part == "embed" and component == "decoder" else part
            if part in counts and is_used(name, config):
                _count(counts[part], name, aligned, before, shelves, config)
        census[component] = counts
    return census


class Shelves:
    """Exported tensors of the same shape side by side, so that one product compares them all."""

    def __init__(self, looks: dict[tuple[int, ...], list[Look]]) -> None:
        self._looks = looks
        self._directions: dict[tuple[int, ...], Array] = {}

    def find(self, wanted: Look) -> Look | None:
        """The tensor that is this one up to rounding; None where there is none."""
        many = self._looks.get(wanted.shape)
        if not many:
            return None
        if wanted.shape not in self._directions:
            self._directions[wanted.shape] = np.stack([_direction(found.values) for found in many])
        likeness = self._directions[wanted.shape] @ _direction(wanted.values)
        best = many[int(likeness.argmax())]
        scale = _spread(best.values) / max(_spread(wanted.values), 1e-30)
        return best if float(likeness.max()) >= SAME and SCALE[0] <= scale <= SCALE[1] else None


def _spread(values: Array) -> float:
    return float(np.std(values, dtype=np.float64))


def _direction(values: Array) -> Array:
    """Values as a vector of length one around their mean; zero where they are all the same, or no numbers."""
    plain = values.reshape(-1).astype(np.float32)
    if not np.isfinite(plain).all():
        return np.zeros_like(plain)
    centred: Array = plain - np.float32(plain.mean())
    return np.asarray(centred / (float(np.linalg.norm(centred)) or 1.0), np.float32)


Way = Callable[[Array], Sequence[Array]]


def ways(name: str, array: Array, config: dict[str, Any]) -> Iterator[Way]:
    """How an exporter may have laid out a tensor, each as a function to the pieces that it made of it."""
    yield lambda a: [flat(a)]
    if flat(array).ndim == 2:
        yield lambda a: [flat(a).T]
    if array.shape[0] % 3 == 0:  # queries, keys and values apart
        yield lambda a: np.split(flat(a), 3)
    if array.ndim == 5:  # llama.cpp convolves each of the two moments of Qwen's patches on its own
        yield lambda a: [flat(a[:, :, moment]) for moment in range(a.shape[2])]
    if "position_embeddings" in name:  # llama.cpp puts InternVL's class token behind the patches
        yield lambda a: [np.roll(flat(a), -1, axis=0)]
    if (found := re.search(r"\b([qk])_proj", name)) and part_of(name) == "language":
        text = config.get("text_config") or config
        heads = text["num_attention_heads" if found[1] == "q" else "num_key_value_heads"]
        yield lambda a: [interleaved(flat(a), heads)]


def interleaved(weights: Array, heads: int) -> Array:
    """Rows in the order of llama.cpp's rotary embedding: the two halves of each head alternate.

    >>> interleaved(np.arange(8), 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    split = weights.reshape(heads, 2, -1, *weights.shape[1:])
    return split.swapaxes(1, 2).reshape(weights.shape)


def _count(
    count: Count, name: str, aligned: Stored, before: Stored | None, shelves: Shelves, config: dict[str, Any]
) -> None:
    """Look for one tensor of the checkpoint, and for the adapter in it."""
    array = aligned.get(name)
    count.parameters += array.size
    if not array.size or (array == array.reshape(-1)[0]).all():  # says nothing, and exporters fold it away
        count.found += array.size
        return
    for way in ways(name, array, config):
        wanted = [look(name, piece) for piece in way(array)]
        found = [match for match in map(shelves.find, wanted) if match is not None]
        if len(found) == len(wanted):
            count.found += array.size
            if before is not None and name in before.names and (base := before.get(name)).shape == array.shape:
                for export, tensor, old in zip(found, wanted, way(base), strict=True):
                    count.adapter.add(export.values, tensor.values, look(name, old).values)
            return
    count.missing.append(name)


# --- what is wrong ----------------------------------------------------------------------------------------------------


def faults(census: Census, files: dict[Component, str]) -> list[str]:
    """One line for everything that is not in the files."""
    found: list[str] = []
    for component, counts in census.items():
        for part, count in counts.items():
            found.extend(_faults_of(files[component], part, count))
    return found


def _faults_of(file: str, part: Part, count: Count) -> Iterator[str]:
    title = TITLES[part]
    if count.missing:
        share, n = count.found / count.parameters, len(count.missing)
        yield f"weights: {file} holds {share:.0%} of the {title}; {n} tensors are not in it, first {count.missing[0]}"
    if count.adapter.coarseness and not count.adapter.is_in:
        kept = max(count.adapter.from_base.value, 0.0)
        which = "that is the base model's" if count.adapter.is_base else "a part was left out of the merge"
        yield f"adapter: {file} holds {kept:.0%} of what training changed in the {title}: {which}"


def summary(census: Census) -> dict[str, Any]:
    """For the manifest: component -> part -> figures."""
    return {
        component: {part: count.summary() for part, count in counts.items() if count.parameters}
        for component, counts in census.items()
    }
