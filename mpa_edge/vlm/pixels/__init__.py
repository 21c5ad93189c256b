"""From an image to the arrays that a vision encoder takes, with numpy and Pillow alone: what runs on a device.

One module a pipeline. Each gives the same bits as the Pillow image processor of transformers 5.23 for its models
(`AutoImageProcessor.from_pretrained(..., backend="pil")`), and the same text in the place of the image placeholder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpa_edge.vlm.pixels import gemma4, idefics3, internvl, lfm2_vl, qwen2_vl, siglip
from mpa_edge.vlm.pixels.common import Prepared

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Prepared", "prepare", "resized"]

PIPELINES = {
    "idefics3": idefics3,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_vl,
    "qwen3_vl": qwen2_vl,
    "gemma4": gemma4,
    "siglip": siglip,
    "internvl": internvl,
    "lfm2_vl": lfm2_vl,
}


def prepare(config: dict[str, Any], image: Image) -> Prepared:
    """One RGB image as the vision encoder and the prompt take it. `config` is `Artifact.image`.

    Each pipeline's own `prepare` documents its arrays and their shapes.
    """
    return PIPELINES[config["kind"]].prepare(config, image)


def resized(config: dict[str, Any], image: Image) -> Image:
    """The image as the pipeline scales it, before it is cut into tiles or patches and normalised."""
    return PIPELINES[config["kind"]].resized(config, image)
