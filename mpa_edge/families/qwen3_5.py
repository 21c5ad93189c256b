"""Qwen3.5: Qwen3-VL's tower without DeepStack; three of four decoder layers are gated delta nets, not attention."""

from mpa_edge.families import Family

FAMILY = Family(
    name="qwen3_5",
    title="Qwen3.5 0.8B and 2B",
    model_types=("qwen3_5",),
    lora_targets={
        "language": (
            r"model\.language_model\.layers\.\d+\."
            r"(self_attn\.[qkvo]_proj|linear_attn\.(in_proj_(qkv|[zba])|out_proj)|mlp\.(gate|up|down)_proj)"
        ),
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])",
        "connector": r"model\.visual\.merger\.linear_fc[12]",
    },
)
