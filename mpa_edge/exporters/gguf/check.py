"""What llama.cpp cannot run as the checkpoint means it is refused before minutes are spent."""

from __future__ import annotations

from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.pre_tokenizer import pre_tokenizer_name
from mpa_edge.exporters.gguf.stage import text_architecture

COVERED = ("idefics3", "smolvlm", "qwen2_vl", "qwen2_5_vl", "llava", "internvl")
QWEN = ("qwen2_vl", "qwen2_5_vl")
# llama.cpp's Qwen encoder reads the third layer's tensors before it knows how many there are
LEAST_QWEN_DEPTH = 3
BLOCK = 32
OTHER = "use an onnx scheme"


def check_gguf_possible(
    config: dict[str, Any],
    processor: dict[str, Any],
    tokenizer: dict[str, Any] | None = None,
    *,
    vision: bool = True,
) -> None:
    """Raise MpaError with the reason where a checkpoint has no right GGUF.

    `config` is config.json, `processor` the image processor's values with the target's budget applied, `tokenizer`
    tokenizer.json where the vocabulary is to be checked too. `vision=False` leaves out what only concerns the mmproj:
    in a hybrid the pictures go through ONNX.
    """
    kind = config["model_type"]
    if kind not in COVERED:
        raise MpaError(f"GGUF covers {', '.join(COVERED)}, not model type '{kind}': {OTHER}")
    _check_language(config)
    if tokenizer is not None and pre_tokenizer_name(tokenizer) is None:
        raise MpaError(f"llama.cpp has no equal of this tokenizer's rules (tokenizer.json, pre_tokenizer): {OTHER}")
    if not vision:
        return
    if kind in ("idefics3", "smolvlm"):
        _check_tiles(processor)
    if kind in QWEN and (depth := config["vision_config"].get("depth", LEAST_QWEN_DEPTH)) < LEAST_QWEN_DEPTH:
        raise MpaError(f"llama.cpp needs {LEAST_QWEN_DEPTH} vision layers of a Qwen model, this has {depth}: {OTHER}")


def _check_language(config: dict[str, Any]) -> None:
    text = config.get("text_config", config)
    if config["model_type"] not in QWEN:
        text_architecture(config)
    for name in ("hidden_size", "intermediate_size"):
        if text.get(name, BLOCK) % BLOCK:
            raise MpaError(f"{name} {text[name]} is no multiple of {BLOCK}, as GGUF's blocks need it: {OTHER}")


def _check_tiles(processor: dict[str, Any]) -> None:
    """llama.cpp always cuts a picture into tiles and adds an overview, whatever the processor was told."""
    tile = processor.get("max_image_size", {}).get("longest_edge", 0)
    edge = processor.get("size", {}).get("longest_edge", 0)
    if not processor.get("do_image_splitting", True):
        raise MpaError(
            f"llama.cpp splits pictures that this model's processor does not (do_image_splitting is false): {OTHER}"
        )
    if edge <= tile:
        raise MpaError(
            f"llama.cpp splits pictures, and longest_edge {edge} leaves one tile of {tile}: "
            f"{OTHER}, or a target that allows more tiles"
        )
