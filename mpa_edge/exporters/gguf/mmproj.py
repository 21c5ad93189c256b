"""The vision file of LLaVA and InternVL, which llama.cpp runs but its converter refuses, written tensor by tensor.

Keys and tensor names are those that llama.cpp's loader asks for (tools/mtmd/clip-impl.h and clip.cpp at the commit of
the pinned runtime, 0c1e57098).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpa_edge.errors import MpaError

if TYPE_CHECKING:
    from mpa_edge.config.target import ImageBudget
    from mpa_edge.exporters.source import Source

# checkpoint -> llama.cpp, as regular expressions; the rest of the name (weight, bias) stays
LLAVA_NAMES = {
    r"embeddings\.patch_embedding\.": "v.patch_embd.",
    r"embeddings\.position_embedding\.": "v.position_embd.",
    r"encoder\.layers\.(\d+)\.layer_norm1\.": r"v.blk.\1.ln1.",
    r"encoder\.layers\.(\d+)\.layer_norm2\.": r"v.blk.\1.ln2.",
    r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.": r"v.blk.\1.attn_\2.",
    r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.": r"v.blk.\1.attn_out.",
    r"encoder\.layers\.(\d+)\.mlp\.fc1\.": r"v.blk.\1.ffn_up.",
    r"encoder\.layers\.(\d+)\.mlp\.fc2\.": r"v.blk.\1.ffn_down.",
    r"projector\.linear_1\.": "mm.0.",
    r"projector\.linear_2\.": "mm.2.",
}
INTERNVL_NAMES = {
    r"embeddings\.cls_token": "v.class_embd",
    r"embeddings\.patch_embeddings\.projection\.": "v.patch_embd.",
    r"embeddings\.position_embeddings": "v.position_embd.weight",
    r"encoder\.layer\.(\d+)\.layernorm_before\.": r"v.blk.\1.ln1.",
    r"encoder\.layer\.(\d+)\.layernorm_after\.": r"v.blk.\1.ln2.",
    r"encoder\.layer\.(\d+)\.lambda_([12])": r"v.blk.\1.ls\2.weight",
    r"encoder\.layer\.(\d+)\.attention\.([qkv])_proj\.": r"v.blk.\1.attn_\2.",
    r"encoder\.layer\.(\d+)\.attention\.projection_layer\.": r"v.blk.\1.attn_out.",
    r"encoder\.layer\.(\d+)\.mlp\.fc1\.": r"v.blk.\1.ffn_up.",
    r"encoder\.layer\.(\d+)\.mlp\.fc2\.": r"v.blk.\1.ffn_down.",
    r"layernorm\.": "v.post_ln.",
    r"projector\.layer_norm\.": "mm.model.mlp.0.",
    r"projector\.linear_1\.": "mm.model.mlp.1.",
    r"projector\.linear_2\.": "mm.model.mlp.3.",
}
NAMES = {"llava": LLAVA_NAMES, "internvl": INTERNVL_NAMES}
# SigLIP's pooling head and last norm come behind the layer whose output LLaVA takes
UNUSED = re.compile(r"(head|post_layernorm)\.")
FULL_PRECISION = ("patch_embd", "position_embd", "class_embd")
BLOCK = 32


def write_mmproj(source: Source, out: Path, precision: str, budget: ImageBudget | None = None) -> None:
    """Write the vision encoder and connector of a LLaVA or InternVL checkpoint as GGUF.

    `precision` (f32, f16, bf16 or q8_0) is that of the matrices; norms, biases and embeddings stay f32. `budget` is the
    image budget of a target. MpaError for a tensor that has no place in the file.
    """
    import gguf
    import torch
    from safetensors import safe_open

    config = source.config
    depth = vision_depth(config)
    writer = gguf.GGUFWriter(out, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if precision == 'f32' else 'MOSTLY'}_{precision.upper()}"])
    _add_metadata(writer, config, source.image_values(budget), depth)
    for path in source.weights:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is not a dict
                name = key in source.names and tensor_name(source.names[key], config["model_type"], depth)
                if not name:
                    continue
                values = file.get_tensor(key).to(torch.float32).numpy()
                if name == "v.class_embd":
                    values = values.reshape(-1)
                if name == "v.position_embd.weight" and values.ndim == 3:
                    # llama.cpp puts the class token behind the patches: its position must move there too
                    values = np.roll(values[0], -1, axis=0)
                if values.ndim < 2 or precision == "f32" or any(part in name for part in FULL_PRECISION):
                    writer.add_tensor(name, values)
                    continue
                fits = precision != "q8_0" or values.shape[-1] % BLOCK == 0
                kind = gguf.GGMLQuantizationType[precision.upper() if fits else "F16"]
                writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def vision_depth(config: dict[str, Any]) -> int:
    """How many layers of the vision tower are in use: LLaVA takes the output of an inner one.

    >>> vision_depth({"vision_config": {"num_hidden_layers": 24}, "vision_feature_layer": -2})
    23
    """
    layers = int(config["vision_config"]["num_hidden_layers"])
    chosen = int(config.get("vision_feature_layer", -1))
    return chosen if chosen >= 0 else layers + 1 + chosen


def _add_metadata(writer: Any, config: dict[str, Any], processor: dict[str, Any], depth: int) -> None:
    vision = config["vision_config"]
    image_size, patch_size = (
        size if isinstance(size, int) else size[0] for size in (vision["image_size"], vision["patch_size"])
    )
    writer.add_clip_has_vision_encoder(True)
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_image_size(image_size)
    writer.add_vision_patch_size(patch_size)
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_block_count(depth)
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(vision["layer_norm_eps"])
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_mean(processor["image_mean"])
    writer.add_vision_image_std(processor["image_std"])
    if config["model_type"] == "llava":
        writer.add_clip_projector_type("mlp")
        # without it llama.cpp stops one layer early
        writer.add_array("clip.vision.feature_layer", [depth])
    else:
        max_tiles = processor.get("max_patches", 12) if processor.get("crop_to_patches") else 1
        writer.add_clip_projector_type("internvl")
        writer.add_vision_projector_scale_factor(round(1 / config["downsample_ratio"]))
        writer.add_vision_preproc_min_tiles(min(processor.get("min_patches", 1), max_tiles))
        writer.add_vision_preproc_max_tiles(max_tiles)


def tensor_name(key: str, model_type: str, depth: int) -> str | None:
    """llama.cpp's name of a checkpoint tensor; None for one that the file does not need. MpaError for an unknown one.

    >>> tensor_name("model.vision_tower.vision_model.encoder.layers.2.mlp.fc1.bias", "llava", depth=3)
    'v.blk.2.ffn_up.bias'
    >>> tensor_name("language_model.lm_head.weight", "llava", depth=3)
    """
    short = re.sub(r"^(model\.)?(vision_tower\.(vision_model\.)?|multi_modal_(?=projector))", "", key)
    if short == key:
        return None
    for pattern, name in NAMES[model_type].items():
        if found := re.match(pattern, short):
            layer = re.match(r"encoder\.layers?\.(\d+)", short)
            return found.expand(name) + short[found.end() :] if layer is None or int(layer[1]) < depth else None
    if model_type == "llava" and UNUSED.match(short):
        return None
    raise MpaError(f"llama.cpp has no place for the vision tensor '{key}': use an onnx or a hybrid scheme")
