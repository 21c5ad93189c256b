"""What a picture becomes: tiles, patches and tokens under the image budget of its model's own image processor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.planning.shapes import Config, Shapes
from mpa_edge.vlm.pixels import idefics3, internvl, qwen2_vl

Size = tuple[int, int]
"""Width and height, pixels."""


@dataclass(frozen=True)
class Seen:
    """One picture, or the mean of many."""

    sequences: float
    """Pieces that the encoder looks at one by one (tiles); 1 where it looks at the whole."""
    patches: float
    """Patches of all pieces."""
    tokens: float
    """Tokens that stand for it in the prompt."""
    marks: float
    """Tokens around them: places of tiles, begin, end."""
    pixels: float
    """Pixels that are handed to the encoder."""


def seen(shapes: Shapes, config: Config, image: Mapping[str, Any], size: Size) -> Seen:
    """A picture of a size under the image processor's values `image` (preprocessor_config.json).

    MpaError where a value is missing.
    """
    try:
        return RULES[shapes.model_type](config, image, size)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise MpaError(
            f"the image processor's values of {shapes.model_type} lack or garble {error}: "
            "copy preprocessor_config.json from the checkpoint into its folder"
        ) from error


def mean(found: Sequence[Seen]) -> Seen:
    """The mean over pictures.

    >>> mean([Seen(1, 4, 1, 0, 100), Seen(3, 12, 3, 2, 300)])
    Seen(sequences=2.0, patches=8.0, tokens=2.0, marks=1.0, pixels=200.0)
    """
    return Seen(*(_average(getattr(one, name) for one in found) for name in Seen.__dataclass_fields__))


def _average(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _edge(value: Any) -> int:
    return int(value[0] if isinstance(value, list | tuple) else value)


def _idefics3(config: Config, image: Mapping[str, Any], size: Size) -> Seen:
    """Whole tiles and an overview; each row of tiles ends a line, each tile is named."""
    vision, edge = config["vision_config"], int(image["max_image_size"]["longest_edge"])
    width, height = idefics3.whole_tiles(*idefics3.scaled_size(*size, image["size"]["longest_edge"]), edge)
    columns, rows = width // edge, height // edge
    one = columns * rows == 1 or not image.get("do_image_splitting", True)
    tiles = 1 if one else columns * rows + 1
    patches = (edge // _edge(vision["patch_size"])) ** 2
    tokens = tiles * patches // int(config.get("scale_factor", 2)) ** 2
    marks = 3 if one else 2 * (tiles - 1) + rows + 4
    return Seen(tiles, tiles * patches, tokens, marks, tiles * edge * edge)


def _llava(config: Config, _image: Mapping[str, Any], _size: Size) -> Seen:
    """One picture of one size, whatever its shape was."""
    vision = config["vision_config"]
    edge = _edge(vision["image_size"])
    patches = (edge // _edge(vision["patch_size"])) ** 2
    return Seen(1, patches, patches, 0, edge * edge)


def _internvl(config: Config, image: Mapping[str, Any], size: Size) -> Seen:
    """The grid of tiles that fits best, and an overview where there is more than one."""
    vision, most = config["vision_config"], int(image.get("max_patches", config.get("max_dynamic_patch", 12)))
    edge = _edge(vision["image_size"])
    columns, rows = internvl.grid(*size, edge * edge, int(image.get("min_patches", 1)), most) if most > 1 else (1, 1)
    tiles = columns * rows + (columns * rows > 1)
    patches = (edge // _edge(vision["patch_size"])) ** 2
    tokens = round(tiles * patches * float(config["downsample_ratio"]) ** 2)
    return Seen(tiles, tiles * patches, tokens, 2, tiles * edge * edge)


def _qwen(config: Config, image: Mapping[str, Any], size: Size) -> Seen:
    """Whole groups of patches between two numbers of pixels, the shape kept."""
    vision, given = config["vision_config"], image.get("size") or {}
    patch, merge = _edge(vision.get("patch_size", 14)), int(vision.get("spatial_merge_size", 2))
    least = int(image.get("min_pixels") or given["shortest_edge"])
    most = int(image.get("max_pixels") or given["longest_edge"])
    width, height = qwen2_vl.scaled_size(*size, patch * merge, least, most)
    patches = (width // patch) * (height // patch)
    return Seen(1, patches, patches // merge**2, 2, width * height)


RULES: dict[str, Callable[[Config, Mapping[str, Any], Size], Seen]] = {
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "llava": _llava,
    "internvl": _internvl,
    "internvl_chat": _internvl,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
}
