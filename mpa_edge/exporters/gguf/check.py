"""What llama.cpp cannot run exactly as the checkpoint means it, refused before anything is built."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mpa_edge.errors import MpaError

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
WHOLE = (*QWEN, "gemma4")
"""Model types for whose language model the converter needs no class of its own."""
COVERED = ("idefics3", "smolvlm", *QWEN, "gemma4", "llava", "internvl", "lfm2_vl")
# llama.cpp's converter chooses the language model's class by this name; transformers leaves it out of a nested config
TEXT_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
}
# the class that knows SmolVLM's tensor names
SMOLVLM_TEXT = "VLlama3ForCausalLM"
# llama.cpp's Qwen encoder reads the third layer's tensors before it knows how many there are
MIN_QWEN_DEPTH = 3
LFM2_PATCH = 16
BLOCK = 32
UNBLOCKED = {"f32", "f16", "bf16"}
OTHER = "use an onnx scheme"
OTHER_VISION = "use an onnx or a hybrid scheme"

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKED = r"[\p{L}\p{M}]"
# a tokenizer's one regular expression -> its name in llama.cpp (src/llama-vocab.cpp, commit 0c1e57098)
_SPLITS = {
    _WORDS + r"\p{N}" + _REST: "qwen2",
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _WORDS.replace(r"\p{L}+", _MARKED + "+") + r"\p{N}" + _REST.replace(r"\p{L}", r"\p{L}\p{M}"): "qwen35",
}


def check_gguf_possible(
    config: dict[str, Any],
    processor: dict[str, Any],
    tokenizer: dict[str, Any] | None = None,
    *,
    vision: bool = True,
    precisions: Iterable[str] = ("q8_0",),
) -> None:
    """Raise MpaError with the reason where a checkpoint has no correct GGUF.

    Args:
        config: config.json.
        processor: Values of the image processor with the target's image budget applied.
        tokenizer: tokenizer.json; None leaves the vocabulary unchecked.
        vision: Whether the vision encoder is exported as GGUF. In a hybrid, images go through ONNX.
        precisions: Those of the scheme. 16-bit precisions take rows of any length.
    """
    kind = config["model_type"]
    if kind not in COVERED:
        raise MpaError(f"GGUF covers {', '.join(COVERED)}, not model type '{kind}': {OTHER}")
    text = config.get("text_config", config)
    if kind not in WHOLE:
        text_architecture(config)
    for name in ("hidden_size", "intermediate_size"):
        if not UNBLOCKED.issuperset(precisions) and text.get(name, BLOCK) % BLOCK:
            raise MpaError(f"{name} {text[name]} is not a multiple of {BLOCK}, GGUF's block size: use gguf-f16")
    n_inner = len(config.get("vision_config", {}).get("deepstack_visual_indexes") or ())
    if n_inner and n_inner >= text["num_hidden_layers"]:  # llama.cpp would abort the process
        raise MpaError(f"llama.cpp needs more language layers than the {n_inner} that DeepStack feeds: {OTHER}")
    if tokenizer is not None and pre_tokenizer_name(tokenizer) is None:
        raise MpaError(f"llama.cpp has no pre-tokenizer with the rules of this tokenizer.json: {OTHER}")
    if vision and (problem := vision_problem(kind, config, processor)):
        raise MpaError(f"{problem}: {OTHER_VISION}")


def vision_problem(kind: str, config: dict[str, Any], processor: dict[str, Any]) -> str | None:
    """Why llama.cpp computes other image embeddings than the checkpoint; None where they are the same."""
    vision = config.get("vision_config", {})
    if kind == "gemma4":
        return None
    if kind in QWEN:
        depth, full = vision.get("depth", MIN_QWEN_DEPTH), vision.get("fullatt_block_indexes")
        if depth < MIN_QWEN_DEPTH:
            return f"llama.cpp needs {MIN_QWEN_DEPTH} vision layers of a Qwen model, this has {depth}"
        if full and list(full) != list(range(full[0], full[-1] + 1, full[0] + 1)):
            return f"llama.cpp takes full attention at every n-th vision layer only, not at {full}"
        return None
    if kind in ("llava", "internvl"):
        tower, layer = vision.get("model_type", ""), config.get("vision_feature_layer", -2)
        # the pinned llama.cpp appends a class token to the patches but removes the first row: one patch is lost
        if kind == "llava" and tower != "siglip_vision_model":
            return f"llama.cpp loses a patch of vision tower '{tower}' (SigLIP is correct)"
        if kind == "internvl" and (vision.get("use_qk_norm") or vision.get("norm_type", "layer_norm") != "layer_norm"):
            return "GGUF takes InternVL's 300M vision tower, not the one with RMS norms"
        all_patches = "full" if kind == "llava" else "default"  # InternVL's "default" removes the class token
        selected = config.get("vision_feature_select_strategy", all_patches)
        if selected != all_patches or (kind == "llava" and not isinstance(layer, int)):
            return "GGUF takes all patches of one vision layer, and this model does not"
        if (name := config.get("projector_hidden_act", "gelu")) != "gelu":
            return f"llama.cpp's connector computes gelu, and projector_hidden_act is {name}"
        return None
    if kind == "lfm2_vl":
        if (patch := vision.get("patch_size")) != LFM2_PATCH:
            return f"llama.cpp's converter takes patches of {LFM2_PATCH} pixels for LFM2-VL, and patch_size is {patch}"
        if not config.get("projector_use_layernorm", True):
            return "llama.cpp's connector of LFM2-VL normalizes its input, and this model does not"
        return None
    # llama.cpp always splits an image into tiles and adds an overview, whatever the processor is configured to do
    tile = processor.get("max_image_size", {}).get("longest_edge", 0)
    edge = processor.get("size", {}).get("longest_edge", 0)
    if not processor.get("do_image_splitting", True):
        return "llama.cpp splits images, and this processor does not (do_image_splitting: false)"
    if edge <= tile:
        return f"llama.cpp splits images, and longest_edge {edge} leaves one tile of {tile} (a target may allow more)"
    return None


def text_architecture(config: dict[str, Any]) -> str:
    """The converter's class for the language model of a checkpoint. MpaError where it has none.

    >>> text_architecture({"model_type": "idefics3", "text_config": {"model_type": "llama"}})
    'VLlama3ForCausalLM'
    """
    kind = config["text_config"].get("model_type", "")
    if config["model_type"] in ("idefics3", "smolvlm") and kind == "llama":
        return SMOLVLM_TEXT
    if kind not in TEXT_ARCHITECTURES:
        known = ", ".join(TEXT_ARCHITECTURES)
        raise MpaError(f"GGUF takes no language model of type '{kind}' (it takes {known}): {OTHER}")
    return TEXT_ARCHITECTURES[kind]


def pre_tokenizer_name(tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a tokenizer.json splits text into words; "" where none is needed (sentencepiece).

    None where llama.cpp has no equivalent. Its own converter looks up a fingerprint of the vocabulary instead, which
    fails for a tokenizer that the user trained.

    >>> digits, byte_level = {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}
    >>> pre_tokenizer_name({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]}})
    'smollm'
    >>> pre_tokenizer_name({"pre_tokenizer": byte_level})
    'gpt-2'
    """
    if (tokenizer.get("model") or {}).get("byte_fallback"):
        return ""
    if (tokenizer.get("normalizer") or {"type": "NFC"}).get("type") != "NFC":
        return None
    return {
        ("digits", "words"): "smollm",
        ("words",): "gpt-2",
        ("qwen2", "bytes"): "qwen2",
        ("qwen35", "bytes"): "qwen35",
        ("llama-bpe", "bytes"): "llama-bpe",
    }.get(_steps(tokenizer.get("pre_tokenizer") or {}))


def _steps(rule: dict[str, Any]) -> tuple[str, ...]:
    """The steps of a pre-tokenizer, one word each; "unknown" for any other rule."""
    kind = rule.get("type")
    if kind == "Sequence":
        return tuple(step for part in rule.get("pretokenizers", []) for step in _steps(part))
    if kind == "Digits" and rule.get("individual_digits"):
        return ("digits",)
    if kind == "ByteLevel" and not rule.get("add_prefix_space"):
        return ("words" if rule.get("use_regex", True) else "bytes",)
    if kind == "Split" and rule.get("behavior") == "Isolated" and not rule.get("invert"):
        return (_SPLITS.get((rule.get("pattern") or {}).get("Regex", ""), "unknown"),)
    return ("unknown",)
