"""InternVL in the format of transformers: InternViT tower, pixel-shuffle projector, any decoder."""

from mpa_edge.families import Family

FAMILY = Family(
    name="internvl",
    title="InternVL2 to InternVL3.5: the -hf checkpoints, and the authors' own of InternVL2",
    model_types=("internvl",),
    lora_targets={
        # Phi-3 has queries, keys and values in one matrix, and both inner ones of its MLP
        "language": r"model\.language_model\.layers\.\d+\."
        r"(self_attn\.([qkvo]|qkv)_proj|mlp\.(gate|up|gate_up|down)_proj)",
        "vision": r"model\.vision_tower\.encoder\.layer\.\d+\.(attention\.([qkv]_proj|projection_layer)|mlp\.fc[12])",
        "connector": r"model\.multi_modal_projector\.linear_[12]",
    },
)
