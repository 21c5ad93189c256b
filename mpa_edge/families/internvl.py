"""InternVL in the format of transformers: InternViT tower, pixel-shuffle projector, Qwen2 decoder."""

from mpa_edge.families import Family

FAMILY = Family(
    name="internvl",
    title="InternVL2.5 and InternVL3, the -hf checkpoints",
    model_types=("internvl",),
    lora_targets={
        "language": r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        "vision": r"model\.vision_tower\.encoder\.layer\.\d+\.(attention\.([qkv]_proj|projection_layer)|mlp\.fc[12])",
        "connector": r"model\.multi_modal_projector\.linear_[12]",
    },
)
