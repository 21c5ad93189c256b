"""Qwen2-VL: ViT of any image shape with 2-D rotary positions, patch merger, Qwen2 decoder with M-RoPE."""

from mpa_edge.families import Family

FAMILY = Family(
    name="qwen2_vl",
    title="Qwen2-VL 2B and 7B",
    model_types=("qwen2_vl",),
    lora_targets={
        "language": r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])",
        "connector": r"model\.visual\.merger\.mlp\.[02]",
    },
)
