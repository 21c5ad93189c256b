"""LLaVA with a SigLIP or CLIP tower: one image of one size, stretched or cropped in the middle.

Source of the steps: transformers 5.23, image_processing_backends.py (PilBackend), models/llava/processing_llava.py and
image_processing_pil_llava.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL.Image import new

from mpa_edge.vlm.pixels.common import Prepared, in_bytes, normalized, scale

if TYPE_CHECKING:
    from PIL.Image import Image


def prepare(config: dict[str, Any], image: Image) -> Prepared:
    """pixel_values f32 (1, 3, H, W)."""
    values = normalized(in_bytes(resized(config, image)), config)
    height, width = values.shape[-2:]
    n_image_tokens = (height // config["patch_size"]) * (width // config["patch_size"])
    n_image_tokens += config["num_additional_image_tokens"]
    return Prepared({"pixel_values": values}, config["image_token"] * n_image_tokens)


def resized(config: dict[str, Any], image: Image) -> Image:
    """The image as the tower takes it: padded to a square if the processor does that, scaled, cropped."""
    if config["do_pad"]:  # in the middle of a square of the mean colour
        edge = max(image.size)
        square = new("RGB", (edge, edge), tuple(int(level * 255) for level in config["image_mean"]))
        square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
        image = square
    if config["do_resize"]:
        image = scale(image, *scaled_size(image.width, image.height, config["size"]), config)
    if config["do_center_crop"]:  # black where the image is smaller
        width, height = config["crop_size"]["width"], config["crop_size"]["height"]
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return image


def scaled_size(width: int, height: int, size: dict[str, int]) -> tuple[int, int]:
    """(width, height): the fixed size, or the given shortest edge with the shape kept.

    >>> scaled_size(300, 200, {"height": 56, "width": 56}), scaled_size(300, 200, {"shortest_edge": 56})
    ((56, 56), (84, 56))
    """
    if "shortest_edge" not in size:
        return size["width"], size["height"]
    short = size["shortest_edge"]
    long = int(short * max(width, height) / min(width, height))
    return (short, long) if width <= height else (long, short)
