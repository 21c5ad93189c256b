"""LFM2-VL: SigLIP 2 tower for images of any shape, decoder of short convolutions and a few layers of attention."""

from mpa_edge.families import Family

FAMILY = Family(
    name="lfm2_vl",
    title="LFM2-VL and LFM2.5-VL 450M, 1.6B and 3B",
    model_types=("lfm2_vl",),
    lora_targets={
        "language": (
            r"model\.language_model\.layers\.\d+\."
            r"(self_attn\.([qkv]|out)_proj|conv\.(in|out)_proj|feed_forward\.w[123])"
        ),
        "vision": r"model\.vision_tower\.encoder\.layers\.\d+\.(self_attn\.([qkv]|out)_proj|mlp\.fc[12])",
        "connector": r"model\.multi_modal_projector\.linear_[12]",
    },
)
