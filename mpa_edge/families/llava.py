"""LLaVA, and TinyLLaVA rewritten so: SigLIP or CLIP tower, two-layer projector, Llama, Qwen2 or StableLM decoder."""

from mpa_edge.families import Family

FAMILY = Family(
    name="llava",
    title="TinyLLaVA and LLaVA, with a SigLIP or CLIP tower",
    model_types=("llava",),
    lora_targets={
        "language": r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        # not the pooling head that some SigLIP towers bring along: LLaVA never reads it
        "vision": r"model\.vision_tower\.encoder\.layers\.\d+\.(self_attn\.([qkv]|out)_proj|mlp\.fc[12])",
        "connector": r"model\.multi_modal_projector\.linear_[12]",
    },
)
