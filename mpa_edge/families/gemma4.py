"""Gemma 4: ViT of any image shape, Gemma decoder with embeddings of every layer. Its audio tower is never tuned."""

from mpa_edge.families import Family

FAMILY = Family(
    name="gemma4",
    title="Gemma 4 E2B and E4B",
    model_types=("gemma4",),
    lora_targets={
        "language": (
            r"model\.language_model\.(per_layer_model_projection|layers\.\d+\."
            r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|per_layer_input_gate|per_layer_projection))"
        ),
        # inside a wrapper that clips what goes in and comes out
        "vision": r"model\.vision_tower\.encoder\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj\.linear",
        "connector": r"model\.embed_vision\.embedding_projection",
    },
)
