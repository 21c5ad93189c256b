"""One file per S-VLM family: which checkpoints it covers and where its LoRA goes. The folder is the registry."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import dataclass
from typing import Literal

from mpa_edge.errors import MpaError

Part = Literal["language", "vision", "connector"]
# model types of authors' own formats -> what their checkpoints are rewritten to (`vlm.transformers.own_formats`)
REWRITTEN = {"internvl_chat": "internvl", "tinyllava": "llava", "tiny_llava_stablelm": "llava"}
# beginnings of model types that need their authors' own code -> a checkpoint of the same kind in transformers' format
OWN_FORMATS = {"tiny_llava": "bczhou/tiny-llava-v1-hf", "llava_llama": "llava-hf/llava-1.5-7b-hf"}


@dataclass(frozen=True)
class Family:
    """What a family of small VLMs needs."""

    name: str
    """File name."""
    title: str
    """Models that belong to it, for people."""
    model_types: tuple[str, ...]
    """`model_type` of config.json."""
    lora_targets: dict[Part, str]
    """Regular expression over module names, for each part that can be tuned."""

    def target_modules(self, parts: tuple[Part, ...]) -> str:
        """One regular expression that matches the whole name of every module to tune.

        >>> Family("x", "X", ("x",), {"language": "a", "vision": "b"}).target_modules(("language", "vision"))
        '(a|b)'
        """
        missing = [part for part in parts if part not in self.lora_targets]
        if missing:
            known = ", ".join(self.lora_targets)
            raise MpaError(f"family '{self.name}' has no LoRA targets in {missing[0]}: use level.targets from {known}")
        return "(" + "|".join(self.lora_targets[part] for part in parts) + ")"


@functools.cache
def families() -> dict[str, Family]:
    """Every family by name."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return {name: importlib.import_module(f"{__name__}.{name}").FAMILY for name in names}


def family_of(model_type: str) -> Family:
    """The family that covers a `model_type`, or what such a checkpoint is rewritten to; MpaError where none does.

    >>> family_of("idefics3").name
    'smolvlm'
    """
    for family in families().values():
        if REWRITTEN.get(model_type, model_type) in family.model_types:
            return family
    instead = next((found for name, found in OWN_FORMATS.items() if model_type.startswith(name)), None)
    if instead:
        raise MpaError(
            f"model type '{model_type}' needs its authors' own code, which is never run here: use {instead}, "
            "or a checkpoint converted to transformers' own format"
        )
    known = ", ".join(sorted(t for family in families().values() for t in family.model_types))
    raise MpaError(f"no family for model type '{model_type}': use a student of type {known}")
