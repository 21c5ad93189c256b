"""Values of a checkpoint's image processor, with a target's image budget applied."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mpa_edge.config.target import ImageBudget
from mpa_edge.runs.files import read_json


def processor_values(checkpoint: Path) -> dict[str, Any]:
    """The image processor's configuration, flat, from whichever of its two files a checkpoint has."""
    nested = read_json(checkpoint / "processor_config.json") or {}
    flat = read_json(checkpoint / "preprocessor_config.json") or {}
    return {**flat, **nested.get("image_processor", {})}


def image_values(checkpoint: Path, budget: ImageBudget | None) -> dict[str, Any]:
    """The same with a target's image budget applied."""
    values = processor_values(checkpoint)
    return values | within_budget(values, budget)


def within_budget(image: dict[str, Any], budget: ImageBudget | None) -> dict[str, Any]:
    """The keys of an image processor's configuration that must change to fit the budget; empty where it fits.

    Models that split an image into tiles (Idefics3, SmolVLM) get a smaller longest edge: k x k tiles at most. Qwen2-VL
    gets fewer pixels, InternVL fewer patches, models with one fixed size nothing.

    >>> smolvlm = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}
    >>> within_budget(smolvlm, ImageBudget(max_tiles=5, max_pixels=10**6))
    {'size': {'longest_edge': 1024}}
    >>> within_budget({"crop_to_patches": True, "max_patches": 12}, ImageBudget(max_tiles=4, max_pixels=10**6))
    {'max_patches': 4}
    >>> qwen = {"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "merge_size": 2}
    >>> within_budget(qwen, ImageBudget(max_tiles=4, max_pixels=602112))
    {'size': {'shortest_edge': 3136, 'longest_edge': 602112}}
    """
    if budget is None:
        return {}
    size = image.get("size") or {}
    if "max_image_size" in image:
        edge = math.isqrt(budget.max_tiles) * image["max_image_size"]["longest_edge"]
        return {"size": {"longest_edge": edge}} if edge < size["longest_edge"] else {}
    if "merge_size" in image and size["longest_edge"] > budget.max_pixels:
        shortest = min(size["shortest_edge"], budget.max_pixels)
        return {"size": {"shortest_edge": shortest, "longest_edge": budget.max_pixels}}
    if image.get("crop_to_patches") and image["max_patches"] > budget.max_tiles:
        return {"max_patches": budget.max_tiles}
    return {}
