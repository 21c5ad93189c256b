"""What llama.cpp cannot run as the checkpoint means it is refused before minutes are spent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.pre_tokenizer import pre_tokenizer_name
from mpa_edge.exporters.gguf.stage import text_architecture

COVERED = ("idefics3", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "internvl")
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# llama.cpp's Qwen encoder reads the third layer's tensors before it knows how many there are
LEAST_QWEN_DEPTH = 3
BLOCK = 32
UNBLOCKED = {"f32", "f16", "bf16"}
OTHER = "use an onnx scheme"
OTHER_EYES = "use an onnx or a hybrid scheme"


def check_gguf_possible(
    config: dict[str, Any],
    processor: dict[str, Any],
    tokenizer: dict[str, Any] | None = None,
    *,
    vision: bool = True,
    precisions: Iterable[str] = ("q8_0",),
) -> None:
    """Raise MpaError with the reason where a checkpoint has no right GGUF.

    `config` is config.json, `processor` the image processor's values with the target's budget applied, `tokenizer`
    tokenizer.json where the vocabulary is to be checked too. `vision=False` leaves out what only concerns the mmproj:
    in a hybrid the pictures go through ONNX. `precisions` are those of the scheme: 16 bits take rows of any length.
    """
    kind = config["model_type"]
    if kind not in COVERED:
        raise MpaError(f"GGUF covers {', '.join(COVERED)}, not model type '{kind}': {OTHER}")
    _check_language(config, blocks=not UNBLOCKED.issuperset(precisions))
    if tokenizer is not None and pre_tokenizer_name(tokenizer) is None:
        raise MpaError(f"llama.cpp has no equal of this tokenizer's rules (tokenizer.json, pre_tokenizer): {OTHER}")
    if vision:
        _check_vision(kind, config, processor)


def _check_language(config: dict[str, Any], blocks: bool) -> None:
    text = config.get("text_config", config)
    if config["model_type"] not in QWEN:
        text_architecture(config)
    for name in ("hidden_size", "intermediate_size"):
        if blocks and text.get(name, BLOCK) % BLOCK:
            raise MpaError(f"{name} {text[name]} is no multiple of {BLOCK}, as GGUF's blocks need it: use gguf-f16")
    n_inner = len(config.get("vision_config", {}).get("deepstack_visual_indexes") or ())
    if n_inner and n_inner >= text["num_hidden_layers"]:  # llama.cpp would end the process
        raise MpaError(f"llama.cpp needs more language layers than the {n_inner} that DeepStack feeds: {OTHER}")


def _check_vision(kind: str, config: dict[str, Any], processor: dict[str, Any]) -> None:
    if kind in QWEN:
        _check_qwen(config["vision_config"])
    elif kind == "llava":
        _check_llava(config)
    elif kind == "internvl":
        _check_internvl(config)
    else:
        _check_tiles(processor)


def _check_tiles(processor: dict[str, Any]) -> None:
    """llama.cpp always cuts a picture into tiles and adds an overview, whatever the processor was told."""
    tile = processor.get("max_image_size", {}).get("longest_edge", 0)
    edge = processor.get("size", {}).get("longest_edge", 0)
    if not processor.get("do_image_splitting", True):
        raise MpaError(
            f"llama.cpp splits pictures that this processor keeps whole (do_image_splitting: false): {OTHER_EYES}"
        )
    if edge <= tile:
        raise MpaError(
            f"llama.cpp splits pictures, and longest_edge {edge} leaves one tile of {tile}: {OTHER_EYES}, "
            "or a target that allows more tiles"
        )


def _check_qwen(vision: dict[str, Any]) -> None:
    depth = vision.get("depth", LEAST_QWEN_DEPTH)
    if depth < LEAST_QWEN_DEPTH:
        raise MpaError(
            f"llama.cpp needs {LEAST_QWEN_DEPTH} vision layers of a Qwen model, this has {depth}: {OTHER_EYES}"
        )
    full = vision.get("fullatt_block_indexes")
    if full and list(full) != list(range(full[0], full[-1] + 1, full[0] + 1)):
        raise MpaError(f"llama.cpp takes full attention at every n-th vision layer only, not at {full}: {OTHER_EYES}")


def _check_llava(config: dict[str, Any]) -> None:
    """The pinned llama.cpp puts a class token behind the patches and takes it away in front: one patch is lost."""
    tower = config["vision_config"].get("model_type", "")
    if tower != "siglip_vision_model":
        raise MpaError(f"llama.cpp loses a patch of vision tower '{tower}' (it runs SigLIP right): {OTHER_EYES}")
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int) or config.get("vision_feature_select_strategy", "full") != "full":
        raise MpaError(f"GGUF takes all patches of one vision layer, and this model takes other ones: {OTHER_EYES}")
    _check_activation("projector_hidden_act", config.get("projector_hidden_act", "gelu"))


def _check_internvl(config: dict[str, Any]) -> None:
    vision = config["vision_config"]
    if vision.get("use_qk_norm") or vision.get("norm_type", "layer_norm") != "layer_norm":
        raise MpaError(f"GGUF takes InternVL's 300M vision tower, not the one with RMS norms: {OTHER_EYES}")
    if config.get("vision_feature_select_strategy", "default") != "default":
        raise MpaError(f"GGUF takes all patches of one vision layer, and this model takes other ones: {OTHER_EYES}")
    _check_activation("projector_hidden_act", config.get("projector_hidden_act", "gelu"))


def _check_activation(key: str, name: str) -> None:
    if name != "gelu":
        raise MpaError(f"llama.cpp's connector computes gelu, and {key} is {name}: {OTHER_EYES}")
