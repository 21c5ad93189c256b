"""From an image to the arrays that a vision encoder takes, with numpy and Pillow alone: what runs on a device.

One module a pipeline. Each gives the same bits as the Pillow image processor of transformers 5.23 for its models
(`AutoImageProcessor.from_pretrained(..., backend="pil")`), and the same text in the place of the image placeholder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpa_edge.vlm.pixels import idefics3, internvl, qwen2_vl, siglip
from mpa_edge.vlm.pixels.common import Prepared

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Prepared", "prepare", "resized"]

PIPELINES = {
    "idefics3": idefics3,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_vl,
    "qwen3_vl": qwen2_vl,
    "siglip": siglip,
    "internvl": internvl,
}


def prepare(config: dict[str, Any], image: Image) -> Prepared:
    """One RGB image as the vision encoder and the prompt take it. `config` is `Artifact.image`.

    Arrays by pipeline (P patches, N tiles, H x W the tile's pixels):
    idefics3    pixel_values f32 (1, N, 3, H, W), pixel_attention_mask bool (1, N, H, W)
    qwen2_vl    pixel_values f32 (P, 1176), grid_thw i64 (1, 3)
    qwen2_5_vl  pixel_values f32 (P, 1176), image_grid_thw i64 (1, 3)
    qwen3_vl    pixel_values f32 (P, 1536), image_grid_thw i64 (1, 3)
    siglip      pixel_values f32 (1, 3, H, W)
    internvl    pixel_values f32 (N, 3, H, W)
    """
    return PIPELINES[config["kind"]].prepare(config, image)


def resized(config: dict[str, Any], image: Image) -> Image:
    """The image as the pipeline scales it, before it is cut into tiles or patches and normalised."""
    return PIPELINES[config["kind"]].resized(config, image)
