"""SmolVLM and Idefics3: SigLIP tower, pixel-shuffle connector, Llama decoder."""

from mpa_edge.families import Family

FAMILY = Family(
    name="smolvlm",
    title="SmolVLM and SmolVLM2 (256M, 500M, 2.2B), Idefics3",
    model_types=("idefics3", "smolvlm"),
    lora_targets={
        "language": r"model\.text_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        "vision": r"model\.vision_model\.encoder\.layers\.\d+\.(self_attn\.([qkv]|out)_proj|mlp\.fc[12])",
        "connector": r"model\.connector\.modality_projection\.proj",
    },
)
