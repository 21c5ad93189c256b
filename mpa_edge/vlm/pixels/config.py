"""The settings of a checkpoint's image processor, as one flat dictionary that travels with an export."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.runs.files import read_json

KINDS = {
    "idefics3": "idefics3",
    "smolvlm": "idefics3",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "qwen3_5": "qwen3_vl",
    "gemma4": "gemma4",
    "llava": "siglip",
    "internvl": "internvl",
    "lfm2_vl": "lfm2_vl",
}
"""`model_type` of config.json -> pipeline."""
PROCESSORS = {
    "Idefics3ImageProcessor": ("idefics3",),
    "SmolVLMImageProcessor": ("idefics3",),
    "Qwen2VLImageProcessor": ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    "Qwen2_5_VLImageProcessor": ("qwen2_vl", "qwen2_5_vl"),
    "Gemma4ImageProcessor": ("gemma4",),
    "SiglipImageProcessor": ("siglip",),
    "CLIPImageProcessor": ("siglip",),
    "LlavaImageProcessor": ("siglip",),
    "GotOcr2ImageProcessor": ("internvl",),
    "Lfm2VlImageProcessor": ("lfm2_vl",),
}
"""`image_processor_type` -> pipelines that do the same."""
COMMON = ("do_resize", "do_rescale", "do_normalize", "rescale_factor", "resample", "image_mean", "image_std", "size")
QWEN = (("patch_size", "merge_size", "temporal_patch_size"), ("image_token",))
SETTINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "idefics3": (("do_image_splitting", "max_image_size"), ("image_token", "fake_image_token", "image_seq_len")),
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "gemma4": (
        ("patch_size", "pooling_kernel_size", "max_soft_tokens"),
        ("image_token", "boi_token", "eoi_token"),
    ),
    "siglip": (
        ("do_center_crop", "crop_size", "do_pad"),
        ("image_token", "patch_size", "num_additional_image_tokens"),
    ),
    "internvl": (
        ("min_patches", "max_patches"),
        ("image_token", "start_image_token", "end_image_token", "image_seq_length"),
    ),
    "lfm2_vl": (
        (
            "do_image_splitting",
            "downsample_factor",
            "encoder_patch_size",
            "min_tiles",
            "max_tiles",
            "tile_size",
            "use_thumbnail",
            "min_image_tokens",
            "max_image_tokens",
            "max_pixels_tolerance",
        ),
        ("image_token", "image_start_token", "image_end_token", "image_thumbnail_token"),
    ),
}
"""Pipeline -> what it needs beside `COMMON`: of the image processor, and of the processor around it."""


def image_config(folder: Path, processor: Any) -> dict[str, Any]:
    """Everything that `prepare` needs of a checkpoint: flat, plain JSON, under the image processor's own names.

    `folder` holds config.json and what `processor.save_pretrained` wrote, which has every default spelled out, and
    possibly a target's image budget applied. `kind` names the pipeline, `image_token` the placeholder. MpaError where
    no pipeline does the same as the image processor.
    """
    model_type = read_json(folder / "config.json")["model_type"]
    values: dict[str, Any] = read_json(folder / "processor_config.json")["image_processor"]
    kind, name = KINDS.get(model_type), re.sub(r"(Fast|Pil)$", "", values["image_processor_type"])
    if kind is None or kind not in PROCESSORS.get(name, ()):
        raise MpaError(
            f"no image pipeline for model type '{model_type}' with the image processor '{name}': "
            f"export a checkpoint of {', '.join(sorted(KINDS))} with its own processor files"
        )
    of_image_processor, of_processor = SETTINGS[kind]
    config = {"kind": kind, **{key: values.get(key) for key in (*COMMON, *of_image_processor)}}
    config |= {key: getattr(processor, key) for key in of_processor}
    if kind == "idefics3":
        config["global_image_token"] = getattr(processor, "global_image_token", "<global-img>")
    elif kind == "siglip":
        config["do_center_crop"] = bool(config["do_center_crop"])
        config["do_pad"] = bool(config["do_pad"]) and name == "LlavaImageProcessor"  # the others ignore it
    elif kind == "internvl":
        config["crop_to_patches"] = True  # the processor asks for patches whatever the image processor's default is
    return config
