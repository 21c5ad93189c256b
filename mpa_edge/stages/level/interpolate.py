"""Interpolate between the student and the tuned student: a part of the change keeps more of what it could do before.

Models on the straight line between a model and its fine-tuned version can be better on the new data and lose less on
the old: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mpa_edge.runs.files import atomic_write
from mpa_edge.vlm.transformers.files import weight_files

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]


def interpolate(tuned: Path, base: str, strength: float) -> None:
    """Keep a share of the change that training made; rewrites the files of an adapter or of a whole model.

    `tuned` is the folder of the adapter or the model, `base` the student as it was, `strength` the share in (0, 1].
    """
    from mpa_edge.vlm.transformers import checkpoint

    if strength == 1.0:
        return
    if (tuned / "adapter_config.json").is_file():
        _rewrite(tuned / "adapter_model.safetensors", lambda tensors: scaled(tensors, strength))
        return
    before = dict(checkpoint.load_model(base, "cpu").state_dict())
    for path in weight_files(tuned):
        _rewrite(path, lambda tensors: between(before, tensors, strength))


def scaled(adapter: Tensors, strength: float) -> Tensors:
    """An adapter with its update scaled: a LoRA update is B times A, so scaling B is enough."""
    return {name: tensor * strength if ".lora_B." in name else tensor for name, tensor in adapter.items()}


def between(before: Tensors, after: Tensors, strength: float) -> Tensors:
    """`before` + `strength` * (`after` - `before`) for each tensor of `after`, computed in fp32, in its dtype."""
    return {
        name: (before[name].float() + strength * (tensor.float() - before[name].float())).to(tensor.dtype)
        for name, tensor in after.items()
    }


def _rewrite(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    from safetensors import safe_open
    from safetensors.torch import save

    with safe_open(str(path), "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    with atomic_write(path, path.stat().st_size) as out:
        out.write(save(change(tensors), metadata=metadata))
