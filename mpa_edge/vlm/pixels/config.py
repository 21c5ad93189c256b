"""The values of a checkpoint's image processor, as one flat dictionary that travels with an export."""

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
    "llava": "siglip",
    "internvl": "internvl",
}
"""`model_type` of config.json -> pipeline."""

COMMON: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IDEFICS3 = {
    **COMMON,
    **HALF,
    "resample": 1,
    "do_image_splitting": True,
    "size": {"longest_edge": 1456},
    "max_image_size": {"longest_edge": 364},
}
QWEN = {
    **COMMON,
    "size": {"shortest_edge": 3136, "longest_edge": 1003520},
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
}
SIGLIP = {
    **COMMON,
    **HALF,
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "crop_size": None,
    "do_pad": False,
}
CLIP = {
    **COMMON,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_pad": False,
}
INTERNVL = {**COMMON, "size": {"height": 384, "width": 384}, "min_patches": 1, "max_patches": 12}
PROCESSORS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "Idefics3ImageProcessor": (("idefics3",), IDEFICS3),
    "SmolVLMImageProcessor": (("idefics3",), IDEFICS3),
    "Qwen2VLImageProcessor": (("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), QWEN),
    "Qwen2_5_VLImageProcessor": (("qwen2_vl", "qwen2_5_vl"), QWEN),
    "SiglipImageProcessor": (("siglip",), SIGLIP),
    "CLIPImageProcessor": (("siglip",), CLIP),
    "LlavaImageProcessor": (("siglip",), CLIP),
    "GotOcr2ImageProcessor": (("internvl",), INTERNVL),
}
"""`image_processor_type` -> pipelines that do the same, and what transformers 5.23 takes where a file says nothing."""


def image_config(folder: Path) -> dict[str, Any]:
    """Everything that `prepare` needs of a checkpoint: flat, plain JSON, under the image processor's own names.

    `kind` names the pipeline, `image_token` the placeholder. This is what `Artifact.image` holds, with the target's
    image budget laid over it: `config | within_budget(config, budget)`. MpaError where no pipeline does the same.
    """
    model, processor = _read(folder, "config.json"), _read(folder, "processor_config.json")
    values = processor.get("image_processor") or _read(folder, "preprocessor_config.json")
    kind, name = KINDS.get(str(model.get("model_type"))), _processor_name(values)
    kinds, defaults = PROCESSORS.get(name, ((), {}))
    if kind not in kinds:
        raise MpaError(
            f"no image pipeline for model type '{model.get('model_type')}' with the image processor '{name}': "
            f"export a checkpoint of {', '.join(sorted(KINDS))} with its own processor files"
        )
    flat = {key: default if values.get(key) is None else values[key] for key, default in defaults.items()}
    flat |= {key: _size(flat[key], key) for key in ("size", "crop_size") if flat.get(key) is not None}
    if kind == "siglip":
        flat["do_pad"] = flat["do_pad"] and name == "LlavaImageProcessor"
    names = {**processor, **_token_names(_read(folder, "tokenizer_config.json"))}
    return {"kind": kind, **flat, **_of_kind(kind, values, names, model)}


def _of_kind(kind: str, values: dict[str, Any], names: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """What the processor around the image processor knows: token texts, tokens of a tile, old names of sizes."""
    if kind == "idefics3":
        return {
            "image_token": names.get("image_token", "<image>"),
            "fake_image_token": names.get("fake_image_token", "<fake_token_around_image>"),
            "global_image_token": names.get("global_image_token", "<global-img>"),
            "image_seq_len": names.get("image_seq_len", 169),
        }
    if kind == "siglip":
        return {
            "image_token": names.get("image_token", "<image>"),
            "patch_size": names.get("patch_size") or model["vision_config"]["patch_size"],
            "vision_feature_select_strategy": names.get("vision_feature_select_strategy"),
            "num_additional_image_tokens": names.get("num_additional_image_tokens", 0),
        }
    if kind == "internvl":
        return {
            # the processor of transformers 5.23 asks for patches whatever the image processor's own default is
            "crop_to_patches": True,
            "image_token": names.get("context_image_token", "<IMG_CONTEXT>"),
            "start_image_token": names.get("start_image_token", "<img>"),
            "end_image_token": names.get("end_image_token", "</img>"),
            "image_seq_length": names.get("image_seq_length", 256),
        }
    return {"image_token": names.get("image_token", "<|image_pad|>"), **_qwen_size(values)}


def _qwen_size(values: dict[str, Any]) -> dict[str, Any]:
    """Older files say min_pixels and max_pixels."""
    size = {**QWEN["size"], **(values.get("size") or {})}
    old = {"shortest_edge": values.get("min_pixels"), "longest_edge": values.get("max_pixels")}
    size |= {edge: pixels for edge, pixels in old.items() if pixels is not None}
    return {"size": {edge: size[edge] for edge in ("shortest_edge", "longest_edge")}}


def _size(size: Any, key: str) -> dict[str, int]:
    """Older files give one number: the shortest edge to scale to, or the edge of the square to crop.

    >>> _size(224, "size"), _size(224, "crop_size")
    ({'shortest_edge': 224}, {'height': 224, 'width': 224})
    """
    if isinstance(size, dict):
        return {edge: value for edge, value in size.items() if value is not None}
    return {"shortest_edge": size} if key == "size" else {"height": size, "width": size}


def _processor_name(values: dict[str, Any]) -> str:
    """Name of the image processor without the ending of a backend."""
    name = values.get("image_processor_type") or values.get("feature_extractor_type") or "unknown"
    return re.sub(r"FeatureExtractor$", "ImageProcessor", re.sub(r"(Fast|Pil)$", "", str(name)))


def _token_names(tokenizer: dict[str, Any]) -> dict[str, str]:
    """Special tokens that the tokenizer gives a name of their own, such as image_token."""
    extra = tokenizer.get("extra_special_tokens")
    named = {**(extra if isinstance(extra, dict) else {}), **tokenizer}
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    return {key: text for key, text in texts.items() if key.endswith("_token") and isinstance(text, str)}


def _read(folder: Path, name: str) -> dict[str, Any]:
    found = read_json(folder / name)
    return found if isinstance(found, dict) else {}
