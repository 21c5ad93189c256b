"""Qwen2.5-VL: as Qwen2-VL, with windows of attention and a gated MLP in the ViT."""

from mpa_edge.families import Family

FAMILY = Family(
    name="qwen2_5_vl",
    title="Qwen2.5-VL 3B and 7B",
    model_types=("qwen2_5_vl",),
    lora_targets={
        "language": r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)",
        "connector": r"model\.visual\.merger\.mlp\.[02]",
    },
)
