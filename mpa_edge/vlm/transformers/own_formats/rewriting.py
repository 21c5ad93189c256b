"""Tensors under new names, some cut into several, from safetensors files to another: one at a time is in memory."""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import MpaError
from mpa_edge.vlm.transformers.files import AGAIN, WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """What becomes of the tensors whose whole name a pattern matches."""

    pattern: str
    """Regular expression over the whole name."""
    names: tuple[str, ...]
    """New names, with groups of the pattern; none: the tensor is left out."""
    groups: int = 1
    """A fused matrix has so many groups of rows, one below another: one for each key-value head, or one."""
    heads: tuple[int, ...] = (1,)
    """In how many equal parts of a group's rows each new tensor has its rows: its heads of queries, keys, values."""


@dataclass(frozen=True)
class Rewritten:
    """What a checkpoint is in the format of transformers."""

    config: dict[str, Any]
    """config.json."""
    generation: dict[str, Any]
    """generation_config.json."""
    rules: Sequence[Rule]
    write_processor: Callable[[Path], None]
    """Writes tokenizer, image processor and chat template into a folder."""


@dataclass(frozen=True)
class Piece:
    """A new tensor."""

    name: str
    shape: tuple[int, ...]
    source: str
    """Name of the tensor that it comes from."""
    rule: Rule
    place: int
    """Of its name in the rule."""


def plan(rules: Sequence[Rule], shapes: dict[str, tuple[int, ...]], folder: Path) -> list[Piece]:
    """The new tensors of a checkpoint, from name and shape of those in its files.

    MpaError that names `folder` for a tensor that no rule knows, that cannot be cut, or that is there twice.
    """
    pieces = []
    for source, shape in shapes.items():
        rule, match = next(((rule, m) for rule in rules if (m := re.fullmatch(rule.pattern, source))), (None, None))
        if rule is None or match is None:
            raise MpaError(f"'{folder}' holds '{source}', which such a model does not have: {AGAIN}")
        rows = rule.groups * sum(rule.heads)
        if shape[0] % rows:
            raise MpaError(f"'{folder}': '{source}' has {shape[0]} rows, not a multiple of {rows}: {AGAIN}")
        for place, (name, heads) in enumerate(zip(rule.names, rule.heads, strict=False)):
            height = shape[0] // rows * rule.groups * heads
            pieces.append(Piece(match.expand(name), (height, *shape[1:]), source, rule, place))
    name, count = Counter(piece.name for piece in pieces).most_common(1)[0]
    if count > 1:
        raise MpaError(f"'{folder}' holds two tensors that become {name}: {AGAIN}")
    return pieces


def rewrite(weights: Iterable[Path], pieces: Sequence[Piece], out: Path) -> None:
    """Write the new tensors to model.safetensors in `out`, in the type that they have, as safetensors lays them out."""
    import torch
    from safetensors import safe_open

    of_source: dict[str, list[Piece]] = {}
    for piece in pieces:
        of_source.setdefault(piece.source, []).append(piece)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ordered, end = [], 0
    for path in weights:
        with safe_open(path, "pt") as file:
            for key in (key for key in file.keys() if key in of_source):  # noqa: SIM118 - it is not a dict
                dtype = file.get_slice(key).get_dtype()
                ordered.append((path, key))
                for piece in of_source[key]:
                    start, end = end, end + math.prod(piece.shape) * int(dtype.lstrip("BF")) // 8
                    header[piece.name] = {"dtype": dtype, "shape": piece.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with (out / WEIGHTS).open("wb") as target:
        target.write(struct.pack("<Q", len(encoded)) + encoded)
        for path, key in ordered:
            with safe_open(path, "pt") as file:
                tensor = file.get_tensor(key)
            parts = cut(tensor, of_source[key][0].rule)
            for piece in of_source[key]:
                target.write(parts[piece.place].reshape(-1).view(torch.uint8).numpy().data)


def cut(tensor: Tensor, rule: Rule) -> list[Tensor]:
    """(groups x parts x width, ...) -> for each new tensor (groups x its heads x width, ...)."""
    rest = tensor.shape[1:]
    grouped = tensor.reshape(rule.groups, sum(rule.heads), -1, *rest)
    return [part.reshape(-1, *rest).contiguous() for part in grouped.split(rule.heads, 1)]
