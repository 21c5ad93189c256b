"""TinyLLaVA with StableLM-2 behind SigLIP, as a LLaVA: saved by TinyLLaVA_Factory (model type tinyllava), or by the
authors' older TinyLLaVABench (tiny_llava_stablelm), as TinyLLaVA-2.0B was published.

Names, sizes and prompts: github.com/TinyLLaVA/TinyLLaVA_Factory, tinyllava/model (the older format:
convert_legecy_weights_to_tinyllavafactory.py) and tinyllava/data, main branch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.vlm.transformers.files import AGAIN, read_object, tensor_shapes, weight_files
from mpa_edge.vlm.transformers.own_formats.rewriting import Rewritten, Rule
from mpa_edge.vlm.transformers.own_formats.vocabulary import CONFIG, token_of

INSTEAD = "use a checkpoint in transformers' own format, such as bczhou/tiny-llava-v1-hf"
LANGUAGE = "stabilityai/stablelm-2-zephyr-1_6b"
DECODER, TOWER, CONNECTOR = "stablelm", "siglip_vision_model", "mlp2x_gelu"
IMAGE, END = "<image>", "<|endoftext|>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
STRATEGIES = {"patch": "default", "cls_patch": "full"}
"""Which patches are seen. "patch" leaves out the first, although SigLIP has no class token: so it was trained."""
PADDED = {"square": False, "pad": True}
"""`image_aspect_ratio` -> whether an image is padded to a square, or stretched."""
SAME_OF_TEXT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "layer_norm_eps",
    "use_qkv_bias",
    "qk_layernorm",
    "use_parallel_residual",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)
SAME_OF_VISION = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
)
RULES = (
    Rule(r"language_model\.model\.(.+)", (r"model.language_model.\1",)),
    Rule(r"language_model\.lm_head\.weight", ("lm_head.weight",)),
    # the pooling head comes behind the layers whose output is taken
    Rule(r"vision_tower\._vision_tower\.vision_model\.head\..+", ()),
    Rule(r"vision_tower\._vision_tower\.vision_model\.(.+)", (r"model.vision_tower.\1",)),
    Rule(r"connector\._connector\.0\.(weight|bias)", (r"model.multi_modal_projector.linear_1.\1",)),
    Rule(r"connector\._connector\.2\.(weight|bias)", (r"model.multi_modal_projector.linear_2.\1",)),
)


OLDER_TOWER, OLDER_HEAD = "model.vision_tower.vision_tower.vision_model", 72
"""Where the tower's tensors are, and the width of its attention heads: it is SigLIP-so400m, and no file says so."""
OLDER_RULES = (
    Rule(r"model\.vision_tower\.vision_tower\.vision_model\.head\..+", ()),
    Rule(r"model\.vision_tower\.vision_tower\.vision_model\.(.+)", (r"model.vision_tower.\1",)),
    Rule(r"model\.mm_projector\.0\.(weight|bias)", (r"model.multi_modal_projector.linear_1.\1",)),
    Rule(r"model\.mm_projector\.2\.(weight|bias)", (r"model.multi_modal_projector.linear_2.\1",)),
    Rule(r"lm_head\.weight", ("lm_head.weight",)),
    Rule(r"model\.((layers|embed_tokens|norm)\..+)", (r"model.language_model.\1",)),
)
OLDER_NAMES = {"rope_pct": "partial_rotary_factor", "norm_eps": "layer_norm_eps"}
"""Of StableLM-2's first config.json -> today's."""


def read_older(folder: Path, config: dict[str, Any]) -> Rewritten:
    """A checkpoint of TinyLLaVABench, as TinyLLaVA_Factory loads it. Arguments and errors are those of `read`.

    The tower ends with the layer whose output is taken: its last one was left out when it was trained.
    """
    shapes = tensor_shapes(weight_files(folder))
    try:
        width, _, patch, _ = shapes[f"{OLDER_TOWER}.embeddings.patch_embedding.weight"]
        patches, _ = shapes[f"{OLDER_TOWER}.embeddings.position_embedding.weight"]
        inner, _ = shapes[f"{OLDER_TOWER}.encoder.layers.0.mlp.fc1.weight"]
    except (KeyError, ValueError) as error:
        raise MpaError(f"'{folder}' holds no SigLIP tower ({error}): {INSTEAD}") from error
    depth = len([name for name in shapes if name.startswith(OLDER_TOWER) and name.endswith("mlp.fc1.weight")])
    depth -= f"{OLDER_TOWER}.head.mlp.fc1.weight" in shapes
    text = {OLDER_NAMES.get(key, key): value for key, value in config.items()} | {"model_type": DECODER}
    text["use_qkv_bias"] = "model.layers.0.self_attn.q_proj.bias" in shapes
    vision = {
        "model_type": TOWER,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": depth,
        "num_attention_heads": width // OLDER_HEAD,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "image_size": patch * math.isqrt(patches),
        "patch_size": patch,
    }
    newer = {
        "text_config": text,
        "vision_config": vision,
        "connector_type": config.get("mm_projector_type"),
        "vision_feature_layer": depth,
        "vision_feature_select_strategy": config.get("mm_vision_select_feature", "patch"),
        "image_aspect_ratio": config.get("image_aspect_ratio", "square"),
        "pad_token": config.get("pad_token"),
    }
    return replace(read(folder, newer), rules=OLDER_RULES)


def read(folder: Path, config: dict[str, Any]) -> Rewritten:
    """The checkpoint as transformers has it; `config` is its config.json. MpaError where transformers has no such."""
    vision, text = config.get("vision_config"), config.get("text_config")
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise MpaError(f"'{folder / 'config.json'}' lacks vision_config or text_config: {AGAIN}")
    strategy, aspect = config.get("vision_feature_select_strategy", "patch"), config.get("image_aspect_ratio", "square")
    for what, found, known in (
        ("decoder", text.get("model_type"), (DECODER,)),
        ("vision tower", vision.get("model_type"), (TOWER,)),
        ("connector_type", config.get("connector_type"), (CONNECTOR,)),
        ("vision_feature_select_strategy", strategy, tuple(STRATEGIES)),
        ("image_aspect_ratio", aspect, tuple(PADDED)),
        ("rope_scaling", text.get("rope_scaling"), (None,)),
    ):
        if found not in known:
            names = ", ".join(map(str, known))
            raise MpaError(f"'{folder}': {what} is '{found}' in config.json, and must be {names} here: {INSTEAD}")
    words, image_id = _tokenizer(folder, int(text.get("vocab_size", 0)), config.get("tokenizer_name_or_path"))
    rope = {
        "rope_theta": text.get("rope_theta", 10000),
        "partial_rotary_factor": text.get("partial_rotary_factor", 0.25),
    }
    made = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": {
            "model_type": DECODER,
            **{key: text[key] for key in SAME_OF_TEXT if key in text},
            "rope_parameters": {"rope_type": "default", **rope},
        },
        "vision_config": {
            "model_type": TOWER,
            **{key: vision[key] for key in SAME_OF_VISION if key in vision},
            "vision_use_head": False,
        },
        "image_token_id": image_id,
        "image_seq_length": _patches(vision) - (STRATEGIES[strategy] == "default"),
        "projector_hidden_act": "gelu",
        "vision_feature_layer": config.get("vision_feature_layer", -2),
        "vision_feature_select_strategy": STRATEGIES[strategy],
        "tie_word_embeddings": bool(text.get("tie_word_embeddings")),
    }
    end = words.token_to_id(END)
    pad = token_of(config, "pad_token") or END
    generation = {"eos_token_id": end, "pad_token_id": words.token_to_id(pad)}
    write = partial(_write_processor, folder, vision, words, pad, STRATEGIES[strategy], PADDED[aspect])
    return Rewritten(made, generation, RULES, write)


def _patches(vision: Mapping[str, Any]) -> int:
    return (int(vision.get("image_size", 224)) // int(vision.get("patch_size", 16))) ** 2


def _tokenizer(folder: Path, vocab_size: int, origin: Any) -> tuple[Any, int]:
    """(the tokenizer with a token for an image, that token's id). `origin`: hub id of the tokenizer."""
    from tokenizers import AddedToken, Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise MpaError(f"'{path}' is missing: put that of {origin or LANGUAGE} into a copy of the folder, and name it")
    try:
        words = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more special
        raise MpaError(f"'{path}' cannot be used ({error}): {AGAIN}") from error
    words.add_special_tokens([AddedToken(IMAGE, normalized=False)])
    image_id, end_id = words.token_to_id(IMAGE), words.token_to_id(END)
    if image_id is None or end_id is None or image_id >= vocab_size:
        raise MpaError(f"'{path}' has no {END}, or is larger than vocab_size {vocab_size} in config.json: {AGAIN}")
    return words, image_id


def _write_processor(
    folder: Path, vision: Mapping[str, Any], words: Any, pad: str, strategy: str, pads: bool, out: Path
) -> None:
    from transformers import LlavaImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    theirs = read_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        bos_token=token_of(theirs, "bos_token"),
        eos_token=END,
        pad_token=pad,
    )
    edge = int(vision.get("image_size", 224))
    images = LlavaImageProcessor(
        do_pad=pads,
        do_center_crop=False,
        size={"height": edge, "width": edge},
        crop_size={"height": edge, "width": edge},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=int(vision.get("patch_size", 16)),
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=0,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(out)


TEMPLATE = (
    "{{ " + json.dumps(SYSTEM) + " }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% else %}{{ 'USER: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '" + IMAGE + "\\n' }}"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '" + END + "' }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The template "phi" of TinyLLaVA_Factory, which StableLM has, too."""
