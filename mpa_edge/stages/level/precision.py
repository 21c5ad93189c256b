"""The precision in which a student is trained: fp32, bf16, or frozen weights in four bits (QLoRA)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from mpa_edge.config.recipe import LevelConfig
from mpa_edge.errors import MpaError, missing_package

# option of level -> (package, the extra of mpa-edge that installs it)
PACKAGES = {"quantize": ("bitsandbytes", "qlora"), "liger": ("liger_kernel", "liger")}
# Dettmers et al. 2023, "QLoRA", arXiv 2305.14314: NF4, double quantization. Vision tower, connector and head are not
# quantized: in a small VLM four bits cost far more there than in the language model
NOT_QUANTIZED = (
    "lm_head",
    r"(model\.)?(visual|vision_tower|vision_model|connector|multi_modal_projector|embed_vision|audio_tower|embed_audio)",
)


def require_packages(config: LevelConfig) -> None:
    """MpaError where an option of level needs a package that is not installed."""
    for option, (package, extra) in PACKAGES.items():
        if getattr(config, option) and find_spec(package) is None:
            raise missing_package(package.replace("_", "-"), extra)


def computes_in_bf16(config: LevelConfig, device: str) -> bool:
    """Whether matrix products are computed in bf16; `auto` means on a GPU.

    >>> computes_in_bf16(LevelConfig(), "cuda"), computes_in_bf16(LevelConfig(precision="bf16"), "cpu")
    (True, True)
    """
    return config.precision == "bf16" or (config.precision == "auto" and device == "cuda")


def weights_dtype(config: LevelConfig, device: str) -> str:
    """The dtype of the student's own weights. Trained ones stay in fp32: bf16 would round a small step away.

    >>> weights_dtype(LevelConfig(), "cuda"), weights_dtype(LevelConfig(method="full"), "cuda")
    ('bfloat16', 'float32')
    """
    frozen = config.method == "lora" and device == "cuda"
    return "bfloat16" if frozen and computes_in_bf16(config, device) else "float32"


def load_student(path: str, config: LevelConfig, device: str) -> Any:
    """The student in the precision that the recipe asks for. MpaError where this machine cannot."""
    from mpa_edge.vlm.transformers import checkpoint

    require_packages(config)
    if config.liger and device == "cpu":
        raise MpaError("level.liger needs a GPU: --set level.liger=false, or --set device=cuda where there is one")
    if not config.quantize:
        return checkpoint.load_model(path, device, dtype=weights_dtype(config, device))
    from peft import prepare_model_for_kbit_training

    model = checkpoint.load_model(path, device, quantization=_quantization(config, device))
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _quantization(config: LevelConfig, device: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    computed = torch.bfloat16 if computes_in_bf16(config, device) else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computed,
        llm_int8_skip_modules=list(NOT_QUANTIZED),
    )


def precision_used(config: LevelConfig, device: str) -> dict[str, str]:
    """For the manifest: the precision that training used, with `auto` resolved."""
    return {
        "weights": "nf4" if config.quantize else weights_dtype(config, device),
        "computed_in": "bfloat16" if computes_in_bf16(config, device) else "float32",
    }
