"""Qwen3-VL: ViT with learned positions, features of several of its layers (DeepStack), Qwen3 decoder with M-RoPE."""

from mpa_edge.families import Family

FAMILY = Family(
    name="qwen3_vl",
    title="Qwen3-VL 2B, 4B and 8B",
    model_types=("qwen3_vl",),
    lora_targets={
        "language": r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])",
        # one merger behind the last layer, and one for each layer whose features the decoder is given on its way
        "connector": r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]",
    },
)
