"""LoRA adapters of tiny checkpoints in the layouts in which other trainers save them, and what peft makes of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mpa_edge.exporters.adapter import probe_inputs
from mpa_edge.runs.files import read_json, write_json
from mpa_edge.vlm.transformers.checkpoint import load_model, load_processor
from tests.families import zoo

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
QWEN_2024 = {"model.language_model.": "model.", "model.visual.": "visual."}
"""Names of transformers 5 -> those of 4.51 and before."""
LLAVA_2024 = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}


@dataclass(frozen=True)
class Made:
    """How an adapter was made."""

    model_type: str
    lora: dict[str, Any]
    """Arguments of LoraConfig."""
    save: Callable[[Any, Path], None] = lambda model, folder: model.save_pretrained(folder)
    """Write a PeftModel into a folder as the trainer does."""
    base: str | None = None
    """What adapter_config.json names; None: the zoo's checkpoint."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the zoo's checkpoint."""


def renamed(folder: Path, change: Callable[[str], str]) -> None:
    held = load_file(folder / WEIGHTS)
    save_file({change(name): tensor for name, tensor in held.items()}, folder / WEIGHTS, {"format": "pt"})


def older(folder: Path, names: dict[str, str], **config: Any) -> None:
    """As an older transformers named the modules; `config` are keys that match those names only."""

    def change(name: str) -> str:
        head, inner = "base_model.model.", name.removeprefix("base_model.model.")
        return head + next(
            (old + inner.removeprefix(new) for new, old in names.items() if inner.startswith(new)), inner
        )

    renamed(folder, change)
    write_json(folder / CONFIG, read_json(folder / CONFIG) | config)


def trainer_files(model: Any, folder: Path) -> None:
    """TRL and LLaMA-Factory: the whole processor, and what transformers' Trainer leaves."""
    model.save_pretrained(folder)
    processor = load_processor(model.get_base_model().name_or_path)
    processor.chat_template += "{# of the training #}"
    processor.save_pretrained(folder)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"a pickle")
    for name in ("trainer_state.json", "all_results.json"):
        write_json(folder / name, {"epoch": 3.0})


def by_swift(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    write_json(folder / "args.json", {"model": "Qwen/Qwen2-VL-2B-Instruct", "train_type": "lora"})
    write_json(folder / "additional_config.json", {"lora_dtype": None, "lorap_lr_ratio": None})


def by_2u1(model: Any, folder: Path) -> None:
    """config.json and processor beside it; the merger, trained as a whole, in a file of its own; names of 2024."""
    state = {name: one for name, one in model.named_parameters() if "lora_" in name}
    model.save_pretrained(folder, state_dict=state)
    model.config.save_pretrained(folder)
    whole = {name: one.detach().clone() for name, one in model.named_parameters() if ".merger." in name}
    old = {name.replace("model.model.visual", "model.visual"): one for name, one in whole.items()}
    torch.save(old, folder / "non_lora_state_dict.bin")
    older(folder, QWEN_2024)


def of_2024(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    older(folder, QWEN_2024, target_modules=r"^(?!visual).*\.(q_proj|down_proj)$")


def of_llava_2024(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    older(folder, LLAVA_2024, target_modules=r"^language_model\.model\.layers\.\d+\.self_attn\.(q_proj|v_proj)$")


def twice_wrapped(model: Any, folder: Path) -> None:
    """Keys of the training process's own state dict."""
    model.save_pretrained(folder)
    renamed(folder, lambda name: f"module.{name}".replace("lora_A.weight", "lora_A.default.weight"))


ATTENTION = ["q_proj", "v_proj"]
BY_REGEX = (
    r"(?:.*?(?:visual|vision).*?(?:qkv|proj|fc1))|(?:\bmodel\.language_model\.layers\.[\d]{1,}\..*(?:q_proj|up_proj))"
)
MADE: dict[str, Made] = {
    "peft": Made("smolvlm", {"target_modules": "all-linear"}),
    "trl": Made("idefics3", {"target_modules": ATTENTION}, trainer_files),
    "unsloth": Made("qwen2_vl", {"target_modules": BY_REGEX}, base="unsloth/Qwen2-VL-2B-Instruct-unsloth-bnb-4bit"),
    "ms-swift": Made(
        "qwen2_5_vl",
        {"target_modules": r"^(model\.language_model(?=\.).*\.(k_proj|gate_proj))$", "use_rslora": True},
        by_swift,
        base="/home/user/.cache/modelscope/hub/models/Qwen/Qwen2.5-VL-3B-Instruct",
    ),
    "LLaMA-Factory, new embeddings": Made(
        "qwen2_vl",
        {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]},
        trainer_files,
        options={"tied": True},
    ),
    "2U1": Made("qwen2_vl", {"target_modules": ATTENTION}, by_2u1),
    "names of 4.51": Made("qwen2_vl", {"target_modules": r".*language_model.*\.(q_proj|down_proj)$"}, of_2024),
    "names of 4.51, llava": Made("llava", {"target_modules": r".*language_model.*\.(q_proj|v_proj)$"}, of_llava_2024),
    "wrapped": Made("internvl", {"target_modules": ATTENTION}, twice_wrapped),
    "dora, patterns": Made(
        "qwen3_vl",
        {
            "target_modules": [*ATTENTION, "linear_fc1"],
            "use_dora": True,
            "use_rslora": True,
            "rank_pattern": {"q_proj": 2, r"language_model\.layers\.1\..*v_proj": 8},
            "alpha_pattern": {"v_proj": 32},
        },
    ),
    "tied head": Made("qwen2_vl", {"target_modules": ["lm_head", "q_proj"]}, options={"tied": True}),
    "tied table": Made("smolvlm", {"target_modules": ["embed_tokens", "q_proj"]}, options={"tied": True}),
    "biases": Made("qwen2_5_vl", {"target_modules": ATTENTION, "bias": "all"}),
}


@cache
def checkpoint(name: str) -> Path:
    """The base of an adapter."""
    return zoo.checkpoint(MADE[name].model_type, **MADE[name].options)


def make(name: str, folder: Path) -> torch.Tensor:
    """Write an adapter to `folder`; (1, tokens, vocabulary) logits of peft's model on the probe of its base."""
    from peft import LoraConfig, get_peft_model

    how, base = MADE[name], checkpoint(name)
    torch.manual_seed(0)
    model = get_peft_model(load_model(str(base), "cpu"), LoraConfig(r=4, lora_alpha=8, **how.lora)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            trained = ".merger." in key if how.save is by_2u1 else parameter.requires_grad and "lora_A" not in key
            if trained or "lora_B" in key or "lora_embedding" in key:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        logits = model(**probe_inputs(load_processor(str(base)))).logits
    folder.mkdir(parents=True)
    how.save(model, folder)
    named = how.base or str(base)
    write_json(folder / CONFIG, json.loads((folder / CONFIG).read_text()) | {"base_model_name_or_path": named})
    return logits
