"""A tiny random model of every model type that a family covers: a new family adds its own here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

IMAGE_TOKEN, VOCABULARY, IMAGE_PX = 90, 96, 32


def _sizes() -> dict[str, Any]:
    text = {
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": IMAGE_PX, "patch_size": 8,
    }  # fmt: skip
    return {
        "text_config": text, "vision_config": vision, "scale_factor": 2, "image_token_id": IMAGE_TOKEN,
        "pad_token_id": 0, "tie_word_embeddings": True,
    }  # fmt: skip


def idefics3() -> Any:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    return Idefics3ForConditionalGeneration(Idefics3Config(**_sizes()))


def smolvlm() -> Any:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    return SmolVLMForConditionalGeneration(SmolVLMConfig(**_sizes()))


def smolvlm_inputs() -> dict[str, torch.Tensor]:
    """One image of 2 x 2 tokens between a few words."""
    random = torch.Generator().manual_seed(0)
    ids = torch.tensor([[1, 5, *[IMAGE_TOKEN] * 4, 7, 8, 9]])
    return {"input_ids": ids, "pixel_values": torch.randn(1, 1, 3, IMAGE_PX, IMAGE_PX, generator=random)}


TINY: dict[str, Callable[[], Any]] = {"idefics3": idefics3, "smolvlm": smolvlm}
INPUTS: dict[str, Callable[[], dict[str, torch.Tensor]]] = {"idefics3": smolvlm_inputs, "smolvlm": smolvlm_inputs}


def build(model_type: str, seed: int = 0) -> Any:
    """A random model in evaluation mode, the same for the same seed."""
    torch.manual_seed(seed)
    return TINY[model_type]().eval()
