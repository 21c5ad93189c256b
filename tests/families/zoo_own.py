"""Tiny random checkpoints in their authors' own formats, with exactly their names, shapes and configs.

The golden files were recorded with checkpoints made by this module. Sizes are those of `zoo`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.families.zoo_text import CORPUS, tokenizer

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 256, 512, 4, 2, 64, 2
IMAGE_PX, PATCH_PX = 112, 14
N_WORDS = 400
OLDER_WIDTH = 288
"""Four heads, as wide as SigLIP-so400m's."""
GAIN, GAIN_OF_ENDS, SURENESS = 1.5, 2.5, 0.45
"""As in `zoo`."""
INTERNVL_TOKENS = (
    "<|im_end|>",
    "<|im_start|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)
INTERNLM2_UNUSED = 6
"""Pieces of InternLM2's vocabulary that stand for nothing; the last two make room for the ends of a turn."""
PHI3_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
PHI3_STRIPS = ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
"""Blanks and line breaks behind these are no tokens."""
SIZES_OF_TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
INTERN_VIT = {
    "architectures": ["InternVisionModel"],
    "model_type": "intern_vit_6b",
    "attention_dropout": 0.0,
    "drop_path_rate": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 256,
    "image_size": IMAGE_PX,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": FFN,
    "layer_norm_eps": 1e-06,
    "norm_type": "layer_norm",
    "num_attention_heads": 4,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "patch_size": PATCH_PX,
    "qk_normalization": False,
    "qkv_bias": True,
    "torch_dtype": "bfloat16",
    "use_flash_attn": True,
}


def internvl2_2b(folder: Path, *, vit: int = 2, dtype: str = "float32", **changes: Any) -> Path:
    """InternVL2-2B: InternLM2 behind InternViT-300M. `vit`: vision layers; `changes`: of config.json."""
    added = dict(enumerate(INTERNVL_TOKENS, N_WORDS - 2))
    unused = [f"[UNUSED_TOKEN_{i}]" for i in range(INTERNLM2_UNUSED)]
    write_vocabulary(folder, added, last=unused, dummy_prefix=False, tokenizer_class="InternLM2Tokenizer")
    vocabulary = N_WORDS + len(INTERNVL_TOKENS) - 2
    text = {
        **SIZES_OF_TEXT,
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
        "attn_implementation": "eager",
        "bias": False,
        "num_key_value_heads": KV_HEADS,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"},
        "rope_theta": 1000000,
        "vocab_size": vocabulary,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    tensors = {**intern_vit(vit), **internlm2(vocabulary)}
    return write(folder, internvl_config(text, "internlm2-chat", vit) | changes, tensors, dtype)


def internvl2_4b(folder: Path, *, vit: int = 2, dtype: str = "float32", **changes: Any) -> Path:
    """InternVL2-4B: Phi-3, whose positions are scaled for a context of 128k, behind InternViT-300M."""
    added = dict(enumerate((*PHI3_TOKENS, *INTERNVL_TOKENS[2:]), N_WORDS))
    strips = [i for i, token in added.items() if token in PHI3_STRIPS]
    write_vocabulary(
        folder, added, last=[], dummy_prefix=True, strips=strips, tokenizer_class="LlamaTokenizer", legacy=False
    )
    vocabulary = N_WORDS + len(added)
    text = {
        **SIZES_OF_TEXT,
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
        "attn_implementation": "eager",
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {
            "type": "su",
            "short_factor": [1.0 + 0.01 * i for i in range(HEAD_DIM // 2)],
            "long_factor": [1.0 + 0.5 * i for i in range(HEAD_DIM // 2)],
        },
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "vocab_size": vocabulary,
        "bos_token_id": 1,
        "eos_token_id": N_WORDS,
        "pad_token_id": N_WORDS,
    }
    tensors = {**intern_vit(vit), **phi3(vocabulary)}
    return write(folder, internvl_config(text, "phi3-chat", vit) | changes, tensors, dtype)


def phi3(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Tensors of Phi-3: queries, keys and values one below another, so the two halves of its MLP."""
    inner = "language_model.model"
    shapes: dict[str, tuple[int, ...]] = {
        f"{inner}.embed_tokens.weight": (vocabulary, HIDDEN),
        f"{inner}.norm.weight": (HIDDEN,),
        "language_model.lm_head.weight": (vocabulary, HIDDEN),
    }
    for i in range(LAYERS):
        layer = f"{inner}.layers.{i}"
        shapes |= {
            f"{layer}.self_attn.qkv_proj.weight": (3 * HIDDEN, HIDDEN),
            f"{layer}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}.mlp.gate_up_proj.weight": (2 * FFN, HIDDEN),
            f"{layer}.mlp.down_proj.weight": (HIDDEN, FFN),
            f"{layer}.input_layernorm.weight": (HIDDEN,),
            f"{layer}.post_attention_layernorm.weight": (HIDDEN,),
        }
    return shapes


def tinyllava_2b(folder: Path, *, vit: int = 3, dtype: str = "float32", **changes: Any) -> Path:
    """TinyLLaVA-2.0B: StableLM-2 behind SigLIP, with an MLP of two layers between them."""
    folder.mkdir(parents=True, exist_ok=True)
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    made = tokenizer("qwen2", specials, eos="<|endoftext|>", pad="<|endoftext|>")
    made.backend_tokenizer.save(str(folder / "tokenizer.json"))
    words = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    vocabulary = len(made) + 5  # StableLM-2's table has rows without a token
    text = {
        "architectures": ["StableLmForCausalLM"],
        "model_type": "stablelm",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "use_qkv_bias": True,
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "float16",
    }
    vision = {
        "model_type": "siglip_vision_model",
        "model_name_or_path": "google/siglip-so400m-patch14-384",
        "model_name_or_path2": "",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 256,
        "image_size": IMAGE_PX,
        "intermediate_size": FFN,
        "num_attention_heads": 4,
        "num_hidden_layers": vit,
        "patch_size": PATCH_PX,
    }
    config = {
        "architectures": ["TinyLlavaForConditionalGeneration"],
        "model_type": "tinyllava",
        "connector_type": "mlp2x_gelu",
        "hidden_size": HIDDEN,
        "ignore_index": -100,
        "image_aspect_ratio": "square",
        "image_token_index": -200,
        "llm_model_name_or_path": "stabilityai/stablelm-2-zephyr-1_6b",
        "pad_token": "<|endoftext|>",
        "text_config": text,
        "tokenizer_model_max_length": 3072,
        "tokenizer_name_or_path": "stabilityai/stablelm-2-zephyr-1_6b",
        "tokenizer_padding_side": "right",
        "tokenizer_use_fast": True,
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "patch",
        "vision_hidden_size": 256,
        "vision_model_name_or_path": "google/siglip-so400m-patch14-384",
        "vision_model_name_or_path2": "",
        "vocab_size": vocabulary,
    }
    tensors = {**siglip(vit), **stablelm(vocabulary)}
    tensors |= linear("connector._connector.0", 256, HIDDEN) | linear("connector._connector.2", HIDDEN, HIDDEN)
    return write(folder, config | changes, tensors, dtype)


def tinyllava_older(folder: Path, *, vit: int = 2, dtype: str = "float32", **changes: Any) -> Path:
    """The same of TinyLLaVABench, as it is on the hub: one config, a tower that ends with the layer that is used."""
    tinyllava_2b(folder)
    config = json.loads((folder / "config.json").read_text())
    text = {"rope_pct" if key == "partial_rotary_factor" else key: one for key, one in config["text_config"].items()}
    older = {
        **text,
        "architectures": ["TinyLlavaStablelmForCausalLM"],
        "model_type": "tiny_llava_stablelm",
        "image_aspect_ratio": "pad",
        "mm_hidden_size": OLDER_WIDTH,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "bczhou/TinyLLaVA-2.0B-SigLIP",
        "norm_eps": 1e-5,
        "pad_token": "<|endoftext|>",
        "tokenizer_model_max_length": 3072,
        "tokenizer_padding_side": "right",
        "use_cache": True,
    }
    tower = siglip(vit, OLDER_WIDTH)
    names = {"vision_tower._vision_tower": "model.vision_tower.vision_tower", "language_model.lm_head": "lm_head"}
    names["language_model.model"] = "model"
    shapes = {name: shape for name, shape in (tower | stablelm(text["vocab_size"])).items() if ".head." not in name}
    renamed = {re.sub("|".join(names), lambda found: names[found[0]], name): one for name, one in shapes.items()}
    renamed |= linear("model.mm_projector.0", OLDER_WIDTH, HIDDEN) | linear("model.mm_projector.2", HIDDEN, HIDDEN)
    return write(folder, older | changes, renamed, dtype)


def siglip(depth: int, width: int = 256) -> dict[str, tuple[int, ...]]:
    """Tensors of a SigLIP tower with the pooling head that nobody asks."""
    inner, patches = "vision_tower._vision_tower.vision_model", (IMAGE_PX // PATCH_PX) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        f"{inner}.embeddings.patch_embedding.weight": (width, 3, PATCH_PX, PATCH_PX),
        f"{inner}.embeddings.patch_embedding.bias": (width,),
        f"{inner}.embeddings.position_embedding.weight": (patches, width),
        f"{inner}.head.probe": (1, 1, width),
        f"{inner}.head.attention.in_proj_weight": (3 * width, width),
        f"{inner}.head.attention.in_proj_bias": (3 * width,),
        **linear(f"{inner}.head.attention.out_proj", width, width),
        **norm(f"{inner}.head.layernorm", width),
        **linear(f"{inner}.head.mlp.fc1", width, FFN),
        **linear(f"{inner}.head.mlp.fc2", FFN, width),
        **norm(f"{inner}.post_layernorm", width),
    }
    for i in range(depth):
        layer = f"{inner}.encoder.layers.{i}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= linear(f"{layer}.self_attn.{part}", width, width)
        shapes |= norm(f"{layer}.layer_norm1", width) | norm(f"{layer}.layer_norm2", width)
        shapes |= linear(f"{layer}.mlp.fc1", width, FFN) | linear(f"{layer}.mlp.fc2", FFN, width)
    return shapes


def stablelm(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Tensors of StableLM-2: biases of queries, keys and values, layer norms."""
    inner = "language_model.model"
    shapes: dict[str, tuple[int, ...]] = {
        f"{inner}.embed_tokens.weight": (vocabulary, HIDDEN),
        "language_model.lm_head.weight": (vocabulary, HIDDEN),
        **norm(f"{inner}.norm", HIDDEN),
    }
    for i in range(LAYERS):
        layer = f"{inner}.layers.{i}"
        for part in "qkv":
            shapes |= linear(f"{layer}.self_attn.{part}_proj", HIDDEN, HIDDEN)
        shapes |= norm(f"{layer}.input_layernorm", HIDDEN) | norm(f"{layer}.post_attention_layernorm", HIDDEN)
        shapes |= {
            f"{layer}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}.mlp.gate_proj.weight": (FFN, HIDDEN),
            f"{layer}.mlp.up_proj.weight": (FFN, HIDDEN),
            f"{layer}.mlp.down_proj.weight": (HIDDEN, FFN),
        }
    return shapes


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Weight and bias of a layer norm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def internvl_config(text: dict[str, Any], template: str, vit: int) -> dict[str, Any]:
    """config.json of an internvl_chat checkpoint."""
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": IMAGE_PX,
        "llm_config": text,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": template,
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": INTERN_VIT | {"num_hidden_layers": vit},
    }


def intern_vit(depth: int) -> dict[str, tuple[int, ...]]:
    """Tensors of InternViT and of the connector behind it."""
    width, patches = INTERN_VIT["hidden_size"], (IMAGE_PX // PATCH_PX) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.position_embedding": (1, patches + 1, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, PATCH_PX, PATCH_PX),
        "vision_model.embeddings.patch_embedding.bias": (width,),
    }
    for i in range(depth):
        layer = f"vision_model.encoder.layers.{i}"
        shapes |= {f"{layer}.ls1": (width,), f"{layer}.ls2": (width,)}
        shapes |= linear(f"{layer}.attn.qkv", width, 3 * width) | linear(f"{layer}.attn.proj", width, width)
        shapes |= linear(f"{layer}.mlp.fc1", width, FFN) | linear(f"{layer}.mlp.fc2", FFN, width)
        for norm in ("norm1", "norm2"):
            shapes |= {f"{layer}.{norm}.weight": (width,), f"{layer}.{norm}.bias": (width,)}
    shapes |= {"mlp1.0.weight": (4 * width,), "mlp1.0.bias": (4 * width,)}
    return shapes | linear("mlp1.1", 4 * width, HIDDEN) | linear("mlp1.3", HIDDEN, HIDDEN)


def internlm2(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Tensors of InternLM2: queries, keys and values fused for each key-value head."""
    inner = "language_model.model"
    shapes: dict[str, tuple[int, ...]] = {
        f"{inner}.tok_embeddings.weight": (vocabulary, HIDDEN),
        f"{inner}.norm.weight": (HIDDEN,),
        "language_model.output.weight": (vocabulary, HIDDEN),
    }
    for i in range(LAYERS):
        layer = f"{inner}.layers.{i}"
        shapes |= {
            f"{layer}.attention.wqkv.weight": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
            f"{layer}.attention.wo.weight": (HIDDEN, HIDDEN),
            f"{layer}.feed_forward.w1.weight": (FFN, HIDDEN),
            f"{layer}.feed_forward.w2.weight": (HIDDEN, FFN),
            f"{layer}.feed_forward.w3.weight": (FFN, HIDDEN),
            f"{layer}.attention_norm.weight": (HIDDEN,),
            f"{layer}.ffn_norm.weight": (HIDDEN,),
        }
    return shapes


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Weight and bias of a linear layer."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


# --- files ------------------------------------------------------------------------------------------------------------


def write(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], dtype: str) -> Path:
    """config.json, and random weights in two shards with their index."""
    import torch
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: torch.from_numpy(drawn).to(getattr(torch, dtype)) for name, drawn in random(shapes)}
    names, index = sorted(tensors), {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{i:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def random(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Iterator[tuple[str, Any]]:
    """Drawn as in `zoo`: no bias is zero, no norm is one, image and question decide the answer."""
    for i, (name, shape) in enumerate(sorted(shapes.items())):
        drawn = np.random.default_rng([seed, i]).standard_normal(shape)
        ends = "embed" in name and "vision" not in name
        if len(shape) == 2:
            gain = GAIN_OF_ENDS if ends or name.endswith(("output.weight", "lm_head.weight")) else GAIN
            drawn *= gain / np.sqrt(shape[1])
        elif len(shape) > 2:
            drawn *= GAIN / np.sqrt(np.prod(shape[1:]))
        else:
            drawn = drawn * 0.1 + (0 if "bias" in name else 1)
        if name.endswith("language_model.model.norm.weight"):
            drawn *= SURENESS
        yield name, drawn.astype(np.float32)


def write_vocabulary(
    folder: Path,
    added: dict[int, str],
    *,
    last: list[str],
    dummy_prefix: bool,
    tokenizer_class: str,
    strips: Sequence[int] = (),
    **more: Any,
) -> None:
    """tokenizer.model and tokenizer_config.json. `last`: words that no text holds, behind all others."""
    import sentencepiece

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=trained,
        model_type="bpe",
        vocab_size=N_WORDS - len(last),
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(trained.getvalue())
    for word in last:
        proto.pieces.add(piece=word, score=0.0, type=proto.SentencePiece.USER_DEFINED)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    specials = {0: "<unk>", 1: "<s>", 2: "</s>"} | added
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "added_tokens_decoder": {
            str(i): {"content": token, **plain, "rstrip": i in strips} for i, token in specials.items()
        },
        "auto_map": {"AutoTokenizer": [f"tokenization.{tokenizer_class}", None]},
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": 8192,
        "pad_token": "</s>",
        "tokenizer_class": tokenizer_class,
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | more))
