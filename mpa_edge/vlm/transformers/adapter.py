"""Adapters as other trainers save them, in the one form that is merged.

Folders of peft, TRL, LLaMA-Factory, ms-swift, unsloth and 2U1's trainers hold the same tensors. They differ in what
selects the modules (a list, a regular expression, "all-linear"), in wrappers around the names, in the release of
transformers that named the modules, and in where weights of whole modules are. Here the tensors decide what is adapted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import MpaError
from mpa_edge.runs.files import make_folder, write_bytes, write_json
from mpa_edge.vlm.transformers.checkpoint import inner_names
from mpa_edge.vlm.transformers.files import ADAPTER, read_object, require_inside, require_readable, tensor_shapes
from mpa_edge.vlm.transformers.merging import TUNED, TUNED_PLAN

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
WHOLE_MODULES = "non_lora_state_dict.safetensors"
"""Beside an adapter of 2U1's trainers: the modules that were trained without LoRA. They write it as a pickle."""
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.|base_model\.model\.)+")
LORA = re.compile(
    r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.default)?(\.weight|\.bias)?$"
)
UNNAMED = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
"""Parameters that are no module of their own: their names end without `.weight`."""
WHOLE = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")
OTHER_BASE = ("pissa", "olora", "corda", "loftq")
"""Initializations that also change the base's weights."""
BY_PEFT = "merge it with peft (merge_and_unload(), then save_pretrained()), and name that folder"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / ADAPTER).is_file() and not any(
        (folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")
    )


def adapter_files(folder: Path) -> list[Path]:
    """The weight files of an adapter. MpaError where one is a pickle, lies outside the folder, or none is there."""
    for name in (WEIGHTS, WHOLE_MODULES):
        pickled = Path(name).with_suffix(".bin").name
        if not (folder / name).is_file() and (folder / pickled).is_file():
            raise MpaError(
                f"'{folder / pickled}' is a pickle, which can run code: convert it where you trust it, python -c "
                f'"import torch, safetensors.torch as s; s.save_file({{k: v.contiguous().clone() for k, v in '
                f"torch.load('{pickled}', map_location='cpu').items()}}, '{name}')\""
            )
    if not (folder / WEIGHTS).is_file():
        raise MpaError(f"'{folder}' has no {WEIGHTS}: copy the adapter again")
    found = [folder / name for name in (WEIGHTS, WHOLE_MODULES) if (folder / name).is_file()]
    for path in (folder / ADAPTER, *found):
        require_inside(path, folder)
        require_readable(path)
    return found


def lora_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. MpaError where it is damaged, or says that the adapter is no LoRA that can be merged."""
    config = read_object(folder / ADAPTER)
    kind, start = config.get("peft_type"), str(config.get("init_lora_weights", "")).lower()
    if kind != "LORA":
        raise MpaError(f"'{folder}' is an adapter of type {kind}, and only LoRA is merged here: {BY_PEFT}")
    if start.startswith(OTHER_BASE):
        raise MpaError(
            f"'{folder}' began as {start}, which changes the base as well: save it as a plain LoRA first "
            "(path_initial_model_for_weight_conversion of peft's save_pretrained)"
        )
    for key, of_kind in (("r", int), ("lora_alpha", int | float)):
        if not isinstance(config.get(key, 8), of_kind):
            raise MpaError(f"'{folder / ADAPTER}' says {key} {config[key]!s:.40}, which is no number: copy it again")
    return config


@dataclass(frozen=True)
class Adapter:
    """An adapter in the names of its base."""

    config: dict[str, Any]
    """adapter_config.json with exact names of modules."""
    lora: dict[str, Tensor]
    """Its tensors."""
    whole: dict[str, Tensor]
    """Weights that replace the base's."""
    untie: bool
    """Whether the output matrix becomes one of its own: only one of the two that were one matrix is tuned."""

    def write(self, out: Path) -> Path:
        """Write the folder that `merging.merge` takes."""
        from safetensors.torch import save

        make_folder(out)
        write_json(out / ADAPTER, self.config)
        write_json(out / TUNED_PLAN, {"untie": self.untie})
        write_bytes(out / WEIGHTS, save({f"base_model.model.{name}": one for name, one in self.lora.items()}))
        if self.whole:
            write_bytes(out / TUNED, save(self.whole))
        return out


def read_adapter(folder: Path, model: Any) -> Adapter:
    """An adapter for `model`, its base with or without weights (`checkpoint.outline`).

    MpaError where it is no LoRA, is not in safetensors, or does not fit the base.
    """
    from safetensors.torch import load_file

    config, paths = lora_config(folder), adapter_files(folder)
    tensor_shapes(paths)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= {WRAPPERS.sub("", name): tensor.contiguous() for name, tensor in load_file(path).items()}
    lora = {name: found for name in tensors if (found := LORA.search(name))}
    if not lora:
        raise MpaError(f"'{folder / WEIGHTS}' holds no LoRA weights: copy the adapter again")
    others = [name for name in tensors if name not in lora and ".original_module." not in name]
    whole = {WHOLE.sub("", name): tensors[name] for name in others}
    keys = {name: f"{name[: found.start()]}.weight" for name, found in lora.items()}
    names = inner_names(model, {*keys.values(), *whole})
    modules = {name: names[key].rpartition(".")[0] for name, key in keys.items()}
    placed = {f"{modules[name]}.{_suffix(found)}": tensors[name] for name, found in lora.items()}
    replaced = {names[name]: tensor for name, tensor in whole.items()}
    check_fits(folder, placed, replaced, {name: tuple(one.shape) for name, one in model.state_dict().items()})
    own = {modules[name]: keys[name].removesuffix(".weight") for name in keys}
    tied = model.get_output_embeddings() is not None and model.config.get_text_config().tie_word_embeddings
    ends = {name for name, module in model.named_modules() if module in _ends(model)}
    touched = ends & ({*own} | {name.rpartition(".")[0] for name in replaced})
    untie = bool(tied and touched and not config.get("ensure_weight_tying"))
    return Adapter(config | selected(config, own, placed), placed, replaced, untie)


def _ends(model: Any) -> list[Any]:
    """Input and output embeddings."""
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def _suffix(found: re.Match[str]) -> str:
    return found[1] if found[1] in UNNAMED else f"{found[1]}{found[2] or '.weight'}"


def selected(config: Mapping[str, Any], own: Mapping[str, str], placed: Mapping[str, Tensor]) -> dict[str, Any]:
    """The keys of adapter_config.json that select modules and set their rank and alpha, with exact names.

    Args:
        config: adapter_config.json of the adapter.
        own: Module of the base -> its name in the adapter, which the adapter's patterns match.
        placed: LoRA tensors by name in the base.
    """
    from peft.utils.other import get_pattern_key

    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    alphas = config.get("alpha_pattern") or {}
    ranks: dict[str, int] = {}
    for name, tensor in placed.items():
        module, _, part = name.partition(".lora_")
        if part.startswith(("A", "embedding_A")):
            ranks[module] = tensor.shape[0]
    alpha_of = {module: alphas.get(get_pattern_key(list(alphas), name), alpha) for module, name in own.items()}
    nothing = ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "target_parameters")
    return {
        **dict.fromkeys((*nothing, "auto_mapping", "base_model_name_or_path", "revision")),
        "target_modules": sorted(own),
        "rank_pattern": {re.escape(module): one for module, one in ranks.items() if one != rank},
        "alpha_pattern": {re.escape(module): one for module, one in alpha_of.items() if one != alpha},
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def check_fits(
    folder: Path,
    placed: Mapping[str, Tensor],
    replaced: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """MpaError where a tensor has no place in the base, or another shape there."""
    fix = "name the model that it was made for with --base MODEL"
    for name, tensor in replaced.items():
        if shapes.get(name) != tuple(tensor.shape):
            there = f"is {shapes[name]} there" if name in shapes else "is not there"
            raise MpaError(f"'{folder}' does not fit its base: {name} {tuple(tensor.shape)} {there}; {fix}")
    for name, tensor in placed.items():
        module, _, part = name.partition(".lora_")
        weight = shapes.get(f"{module}.weight")
        axis = {"A.weight": 1, "B.weight": 0}.get(part)
        if weight is None:
            raise MpaError(f"'{folder}' does not fit its base, which has no {module}: {fix}")
        if axis is not None and (len(tensor.shape) < 2 or weight[axis] != tensor.shape[axis]):
            raise MpaError(f"'{folder}' does not fit its base: {module} is {weight} there; {fix}")
