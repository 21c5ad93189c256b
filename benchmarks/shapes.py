"""Checkpoints with the real configuration of SmolVLM and random weights: for seconds, bytes and memory.

    python benchmarks/shapes.py smolvlm-256m FOLDER

Sizes are those of the published config.json files (HuggingFaceTB/SmolVLM-256M-Instruct and -500M-Instruct). Tokenizer
and chat template are the built-in student's; its words take the first rows of the full vocabulary.

Weights are drawn so that rounding them does what it does to a trained model: every matrix keeps the variance of its
input, the layers together add as much to the stream as the embeddings brought, and a few words are far likelier than
the rest. Plain N(0, 0.02) would make each answer a tie between thousands of words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
TEXT: dict[str, dict[str, int]] = {
    "smolvlm-256m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "smolvlm-500m": {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
    },
}
VOCABULARY, TILE_PX, LONGEST_PX, SCALE = 49280, 512, 2048, 4
IMAGE_TOKENS = (512 // 16) ** 2 // SCALE**2
LIKELY, LIKELY_GAIN = 256, 4.0
"""Words whose row of the head is larger, and how much."""


def build(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write the checkpoint in bfloat16, as it is published; the folder."""
    import torch
    from transformers import Idefics3ForConditionalGeneration

    processor = _processor()
    with torch.device("meta"):
        model = Idefics3ForConditionalGeneration(_config(name, processor.tokenizer))
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    _draw(model, torch.Generator().manual_seed(seed))
    for key in ("bos", "eos", "pad"):
        setattr(model.generation_config, f"{key}_token_id", getattr(processor.tokenizer, f"{key}_token_id"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def _processor() -> Any:
    from mpa_edge.vlm import resolve
    from mpa_edge.vlm.transformers.checkpoint import load_processor

    processor = load_processor(resolve("nursery:student"))
    processor.image_processor.size = {"longest_edge": LONGEST_PX}
    processor.image_processor.max_image_size = {"longest_edge": TILE_PX}
    processor.image_seq_len = IMAGE_TOKENS
    return processor


def _config(name: str, tokenizer: Any) -> Any:
    from transformers import Idefics3Config

    ids = {f"{key}_token_id": getattr(tokenizer, f"{key}_token_id") for key in ("bos", "eos", "pad")}
    rest = {
        "model_type": "llama",
        "head_dim": 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    return Idefics3Config(
        text_config={**TEXT[name], **rest, **ids},
        vision_config=VISION,
        scale_factor=SCALE,
        dtype="bfloat16",
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
        pad_token_id=ids["pad_token_id"],
    )


def _draw(model: Any, random: Any) -> None:
    """Fill every parameter in place."""
    import torch

    depth = {"vision_model": VISION["num_hidden_layers"], "text_model": model.config.text_config.num_hidden_layers}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0 if "norm" in name and "bias" not in name else 0.0)
                continue
            gain = 1.0 if "embed_tokens" in name or "position_embedding" in name else parameter[0].numel() ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight")):
                gain *= (2 * depth[next(part for part in depth if part in name)]) ** -0.5
            parameter.normal_(0, gain, generator=random)
        likely = torch.randperm(VOCABULARY, generator=random)[:LIKELY]
        model.lm_head.weight[likely] *= LIKELY_GAIN


@click.command()
@click.argument("name", type=click.Choice(sorted(TEXT)))
@click.argument("folder", type=click.Path(path_type=Path))
def main(name: str, folder: Path) -> None:
    """Write the checkpoint NAME into FOLDER."""
    click.echo(build(name, folder))


if __name__ == "__main__":
    main()
