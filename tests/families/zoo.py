"""Tiny random checkpoints of every model type, whole folders as `save_pretrained` leaves them: nothing is downloaded.

Sizes suit ONNX and llama.cpp: hidden 256, FFN 512, heads of 64, rows that every quantization takes. Weights are drawn
so that image and question decide the answer and rounding does not: int8 weights move the logits by 5 % of their norm,
4 bits in groups of 32 by half, a blank image by all of it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.families import zoo_own
from tests.families import zoo_text as text

MODEL_TYPES = (
    "idefics3",
    "smolvlm",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5",
    "llava",
    "internvl",
    "lfm2_vl",
    "gemma4",
)
OWN_FORMATS = {
    "internvl2_2b": zoo_own.internvl2_2b,
    "internvl2_4b": zoo_own.internvl2_4b,
    "tinyllava_2b": zoo_own.tinyllava_2b,
    "tinyllava_older": zoo_own.tinyllava_older,
}
"""Models in their authors' own formats, which is how `checkpoint` makes them."""
HIDDEN, FFN, HEAD_DIM, TEXT_LAYERS = 256, 512, 64, 2
CONTEXT = 4096
GAIN, GAIN_OF_ENDS = 1.5, 2.5
FROM_ZERO = ("Qwen3_5RMSNorm",)
"""Norms that add one to their weights."""
LAST_NORMS = ("text_model.norm.weight", "language_model.norm.weight", "language_model.embedding_norm.weight")
SURENESS = 0.45
"""Matrices get this over the root of their fan-in; input and output embeddings more, for logits with clear winners."""
GATED_DELTA = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": HEAD_DIM,
    "linear_value_head_dim": HEAD_DIM,
    "mtp_num_hidden_layers": 1,  # as published; transformers drops that layer's weights
}
# read with the module: what is on the disk later need not be what runs
SOURCES = [Path(source).read_text(encoding="utf-8") for source in (__file__, text.__file__, zoo_own.__file__)]


@functools.cache
def checkpoint(model_type: str, **options: Any) -> Path:
    """Folder of a tiny random checkpoint, made once and kept in the temp folder: read it, copy it, never write to it.

    Options, all with a default: `splitting` (idefics3, smolvlm), `tower` = "siglip" or "clip" (llava), `depth` = vision
    layers, `hidden` = width of the language model, `tied` = output embeddings are the input embeddings, `language` =
    its kind (internvl), `full_size` = as many words as the published model (idefics3, smolvlm), `usual_tower` = as many
    vision layers as the published models, of their inner width (the same two), `dtype`, `seed`.
    """
    folder = _home() / f"{model_type}-{_key(options)}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            _save(made, model_type, **options)
            with suppress(OSError):  # another process was quicker
                os.replace(made, folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def noise(width_px: int, height_px: int) -> Image.Image:
    """An RGB image of random pixels, the same at each call: what is near a bound must not depend on the draw."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8))


def _home() -> Path:
    return Path(tempfile.gettempdir()) / f"mpa-edge-zoo-{os.getuid()}"


def _key(options: dict[str, Any]) -> str:
    import transformers

    made_by = [*SOURCES, transformers.__version__, options]
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:12]


def _save(folder: Path, model_type: str, seed: int = 0, dtype: str = "float32", **options: Any) -> None:
    import torch

    if model_type in OWN_FORMATS:
        OWN_FORMATS[model_type](folder, dtype=dtype, **options)
        return
    config, processor = RECIPES[model_type](**options)
    model = _model(config).eval()
    _randomize(model, torch.Generator().manual_seed(seed))
    tokenizer = processor.tokenizer
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<turn|>")]
    model.generation_config.eos_token_id = ends if model_type == "gemma4" else ends[0]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    processor.save_pretrained(folder)


def _model(config: Any) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_config(config)


def _randomize(model: Any, random: Any) -> None:
    """No bias is zero and no norm is one: a missed bias or a missed scale changes the answer."""
    import torch

    from_zero = {f"{name}.weight" for name, module in model.named_modules() if type(module).__name__ in FROM_ZERO}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                gain = GAIN_OF_ENDS if "embed_tokens" in name or "lm_head" in name else GAIN
                parameter.normal_(0, gain / parameter[0].numel() ** 0.5, generator=random)
            else:
                parameter.normal_(0 if "bias" in name else 1, 0.1, generator=random)
                if name.endswith("A_log"):
                    parameter.sub_(4)  # a state outlives an image
            if name.endswith(LAST_NORMS):
                parameter.mul_(SURENESS)  # as sure of the next token as rounding to 4 bits leaves a trained model
            if name in from_zero:
                parameter.sub_(1)
            if name.endswith(("conv.out_proj.weight", "feed_forward.w2.weight")):
                parameter.mul_(0.2)  # products of several matrices, which would hide what attention finds
            if name.endswith("position_embedding_table"):
                parameter.normal_(0, 0.5, generator=random)
            if model.config.model_type == "gemma4":
                parameter.mul_(_gemma_gain(name))
        for name, buffer in model.named_buffers():
            if name.endswith(("_min", "_max")):
                buffer.fill_(2.5 if name.endswith("max") else -2.5)  # few numbers of a layer are clipped
            elif name.endswith("layer_scalar"):
                buffer.fill_(0.8)


def _gemma_gain(name: str) -> float:
    """Attention has no scale of its own; embeddings are scaled by the model, and must not outweigh its layers."""
    if name.endswith("q_norm.weight"):
        return HEAD_DIM**-0.5
    if name.endswith("embed_tokens.weight"):
        return 0.2
    return 8.0 if name.endswith("language_model.norm.weight") else 1.0


def _text(tokenizer: Any, *, hidden: int = HIDDEN, tied: bool = False) -> dict[str, Any]:
    """Sizes that all language models share: half as many key-value heads as heads."""
    heads = hidden // HEAD_DIM
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": FFN,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2 or 1,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _smol(
    model_type: str,
    *,
    splitting: bool = True,
    tied: bool = False,
    depth: int = 2,
    hidden: int = HIDDEN,
    full_size: bool = False,
    usual_tower: bool = False,
) -> tuple[Any, Any]:
    """Tiles of 64 px, 16 tokens each; up to 4 x 4 of them and an overview."""
    import transformers

    ends = {"bos": "<|im_start|>", "eos": "<end_of_utterance>", "pad": "<|im_end|>"}
    names = text.tokenizer("smollm", text.SMOL_SPECIALS, **ends, full_size=full_size)
    base = "Idefics3" if model_type == "idefics3" else "SmolVLM"
    config = getattr(transformers, f"{base}Config")(
        text_config={"model_type": "llama", "rope_theta": 100000.0, **_text(names, hidden=hidden, tied=tied)},
        vision_config={
            "hidden_size": 256,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
            **({} if usual_tower else {"intermediate_size": FFN, "num_hidden_layers": depth}),
        },
        scale_factor=2,
        image_token_id=names.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=tied,
        pad_token_id=names.pad_token_id,
    )
    image_processor = getattr(transformers, f"{base}ImageProcessor")(
        do_image_splitting=splitting, size={"longest_edge": 256}, max_image_size={"longest_edge": 64}
    )
    video = {} if base == "Idefics3" else {"video_processor": transformers.SmolVLMVideoProcessor()}
    processor = getattr(transformers, f"{base}Processor")(
        image_processor, names, image_seq_len=16, chat_template=text.SMOL_TEMPLATE, **video
    )
    return config, processor


def _qwen(model_type: str, *, tied: bool = True, depth: int | None = None, hidden: int = HIDDEN) -> tuple[Any, Any]:
    """Patches of 14 px (Qwen3: 16), 4 to 64 tokens an image.

    2.5 looks at windows of 112 px, at all of the image in every other layer. 3.5 has one layer of attention, and one
    with a recurrent state before and behind it.
    """
    import transformers

    third = model_type.startswith("qwen3")
    split = "qwen35" if model_type == "qwen3_5" else "qwen2"
    names = text.tokenizer(split, text.QWEN_SPECIALS, eos="<|im_end|>", pad="<|endoftext|>")
    ids = {
        f"{key}_token_id": names.convert_tokens_to_ids(f"<|{token}|>")
        for key, token in {
            "image": "image_pad",
            "video": "video_pad",
            "vision_start": "vision_start",
            "vision_end": "vision_end",
        }.items()
    }
    base = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "qwen3_5": "Qwen3_5"}[model_type]
    rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [8, 12, 12]}
    sizes = _text(names, hidden=hidden, tied=tied)
    if third:
        rope |= {"mrope_section": [12, 10, 10], "mrope_interleaved": True}
        # llama.cpp wants more layers than there are inner features, and one epsilon for vision and language
        sizes |= {"num_hidden_layers": 3, "rms_norm_eps": 1e-6}
    if model_type == "qwen3_5":
        rope |= {"mrope_section": [6, 5, 5], "partial_rotary_factor": 0.5}
        sizes |= GATED_DELTA
    config = getattr(transformers, f"{base}Config")(
        text_config={**sizes, "rope_parameters": rope},
        vision_config=_qwen_eyes(model_type, depth, hidden),
        tie_word_embeddings=tied,
        **ids,
    )
    patch = 16 if third else 14
    pixels = {"shortest_edge": (4 * patch) ** 2, "longest_edge": (2 * patch) ** 2 * 64}
    halves = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if third else {}
    processor = getattr(transformers, "Qwen3VLProcessor" if third else f"{base}Processor")(
        transformers.Qwen2VLImageProcessor(
            size=pixels, patch_size=patch, merge_size=2, temporal_patch_size=2, **halves
        ),
        names,
        getattr(transformers, "Qwen3VLVideoProcessor" if third else "Qwen2VLVideoProcessor")(),
        chat_template=text.QWEN_TEMPLATE,
    )
    return config, processor


def _qwen_eyes(model_type: str, depth: int | None, hidden: int) -> dict[str, Any]:
    """Vision tower of a Qwen model; that of Qwen3-VL hands the features of two inner layers to the decoder."""
    if model_type == "qwen2_vl":
        return {
            "depth": depth or 3,
            "num_heads": 4,
            "patch_size": 14,
            "embed_dim": 128,
            "hidden_size": hidden,
            "mlp_ratio": 4,
        }
    depth = depth or (3 if model_type == "qwen3_5" else 4)
    shared = {"depth": depth, "num_heads": 4, "hidden_size": 128, "intermediate_size": 256, "out_hidden_size": hidden}
    if model_type.startswith("qwen3"):
        # a table of 6 x 6 positions: larger and smaller images stretch it
        inner = {"deepstack_visual_indexes": [0, depth // 2]} if model_type == "qwen3_vl" else {}
        return {**shared, "patch_size": 16, "num_position_embeddings": 36, **inner}
    return {**shared, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [depth // 2 - 1, depth - 1]}


def _llava(
    *, tower: str = "siglip", strategy: str = "", tied: bool = False, depth: int = 3, hidden: int = HIDDEN
) -> tuple[Any, Any]:
    """One image of 112 px, 64 tokens; a SigLIP tower as in TinyLLaVA, or a CLIP tower with its class token."""
    import transformers

    names = text.tokenizer("smollm", text.LLAVA_SPECIALS, bos="<s>", eos="</s>", pad="<pad>", unk_token="<unk>")
    strategy = strategy or ("full" if tower == "siglip" else "default")
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **_text(names, hidden=hidden, tied=tied)},
        vision_config={
            "model_type": f"{tower}_vision_model",
            "hidden_size": 256,
            "intermediate_size": FFN,
            "num_hidden_layers": depth,
            "num_attention_heads": 4,
            "image_size": 112,
            "patch_size": 14,
        },
        image_token_id=names.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy=strategy,
        vision_feature_layer=-2,
        image_seq_length=64,
        tie_word_embeddings=tied,
    )
    if tower == "siglip":
        config.vision_config.vision_use_head = False  # as in published checkpoints: LLaVA never reads the pooling head
        image_processor = transformers.SiglipImageProcessor(size={"height": 112, "width": 112})
    else:
        crop = {"height": 112, "width": 112}
        image_processor = transformers.CLIPImageProcessor(size={"shortest_edge": 112}, crop_size=crop)
    processor = transformers.LlavaProcessor(
        image_processor,
        names,
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=0 if tower == "siglip" else 1,
        chat_template=text.LLAVA_TEMPLATE,
    )
    return config, processor


def _internvl(*, tied: bool = False, depth: int = 2, hidden: int = HIDDEN, language: str = "qwen2") -> tuple[Any, Any]:
    """Patches of 112 px, 16 tokens each; up to four of them and an overview. 2B speaks llama, 4B phi3, 3.5 qwen3."""
    import transformers

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    names = text.tokenizer(
        "qwen2", text.INTERNVL_SPECIALS, eos="<|im_end|>", pad="<|endoftext|>", extra_special_tokens=named
    )
    config = transformers.InternVLConfig(
        text_config={"model_type": language, **_text(names, hidden=hidden, tied=tied)},
        vision_config={
            "hidden_size": 256,
            "intermediate_size": FFN,
            "num_hidden_layers": depth,
            "num_attention_heads": 4,
            "image_size": [112, 112],
            "patch_size": [14, 14],
        },
        image_token_id=names.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
        downsample_ratio=0.5,
        tie_word_embeddings=tied,
    )
    image_processor = transformers.GotOcr2ImageProcessor(
        size={"height": 112, "width": 112}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = transformers.InternVLProcessor(
        image_processor,
        names,
        transformers.InternVLVideoProcessor(),
        image_seq_length=16,
        chat_template=text.INTERNVL_TEMPLATE,
    )
    return config, processor


def _lfm2(*, tied: bool = True, depth: int = 3, hidden: int = HIDDEN) -> tuple[Any, Any]:
    """Tiles of 128 px, 16 tokens each, up to four of them and an overview of 4 to 16 tokens in the image's shape.

    llama.cpp's converter names the connector's second layer by its number, which must be that of a vision layer.
    """
    import transformers

    ends = {"bos": "<|startoftext|>", "eos": "<|im_end|>", "pad": "<|pad|>"}
    names = text.tokenizer("llama-bpe", text.LFM2_SPECIALS, **ends)
    sizes = _text(names, hidden=hidden, tied=tied)
    del sizes["head_dim"], sizes["rms_norm_eps"]
    config = transformers.Lfm2VlConfig(
        text_config={
            "model_type": "lfm2",
            **sizes,
            "num_hidden_layers": 5,
            "layer_types": ["conv", "full_attention", "conv", "full_attention", "full_attention"],
            "block_auto_adjust_ff_dim": False,
        },
        vision_config={
            "model_type": "siglip2_vision_model",
            "hidden_size": 256,
            "intermediate_size": FFN,
            "num_hidden_layers": depth,
            "num_attention_heads": 4,
            "patch_size": 16,
            "num_patches": 144,  # 12 x 12 positions, more than a tile has patches: a patch gets the mean of several
            "vision_use_head": False,
        },
        image_token_id=names.convert_tokens_to_ids("<image>"),
        projector_hidden_size=FFN,
        tie_word_embeddings=tied,
    )
    image_processor = transformers.Lfm2VlImageProcessor(
        tile_size=128, min_image_tokens=4, max_image_tokens=16, max_tiles=4
    )
    processor = transformers.Lfm2VlProcessor(image_processor, names, chat_template=text.LFM2_TEMPLATE)
    return config, processor


def _gemma(*, depth: int = 2, hidden: int = HIDDEN) -> tuple[Any, Any]:
    """Patches of 16 px, nine become a token, up to 70 tokens an image.

    Layers look back over 32 tokens and over all by turns; the last two have no keys and values of their own.
    """
    import transformers

    names = text.gemma_tokenizer()
    ids = {f"{kind}_token_id": names.convert_tokens_to_ids(f"<|{kind}|>") for kind in ("image", "audio", "video")}
    config = transformers.Gemma4Config(
        text_config={
            **_text(names, hidden=hidden, tied=True),
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "global_head_dim": 2 * HEAD_DIM,
            "sliding_window": 32,
            "hidden_size_per_layer_input": 64,
            "vocab_size_per_layer_input": len(names),
            "final_logit_softcapping": 10.0,
            "rms_norm_eps": 1e-6,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": depth,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": HEAD_DIM,
            "position_embedding_size": 256,
            "use_clipped_linears": True,
        },
        audio_config={"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 128},
        boi_token_id=names.convert_tokens_to_ids("<|image>"),
        eoi_token_id=names.convert_tokens_to_ids("<image|>"),
        boa_token_id=names.convert_tokens_to_ids("<|audio>"),
        eoa_token_index=names.convert_tokens_to_ids("<audio|>"),
        tie_word_embeddings=True,
        **ids,
    )
    processor = transformers.Gemma4Processor(
        transformers.Gemma4AudioFeatureExtractor(),
        transformers.Gemma4ImageProcessor(max_soft_tokens=70),
        names,
        transformers.Gemma4VideoProcessor(),
        chat_template=text.GEMMA_TEMPLATE,
        image_seq_length=70,
    )
    return config, processor


RECIPES: dict[str, Callable[..., tuple[Any, Any]]] = {
    "idefics3": functools.partial(_smol, "idefics3"),
    "smolvlm": functools.partial(_smol, "smolvlm"),
    "qwen2_vl": functools.partial(_qwen, "qwen2_vl"),
    "qwen2_5_vl": functools.partial(_qwen, "qwen2_5_vl"),
    "qwen3_vl": functools.partial(_qwen, "qwen3_vl"),
    "qwen3_5": functools.partial(_qwen, "qwen3_5"),
    "gemma4": _gemma,
    "llava": _llava,
    "internvl": _internvl,
    "lfm2_vl": _lfm2,
}
