"""Go only part of the way from the student to the tuned student: it keeps more of what it could do before.

On the straight line between a model and its fine-tuned self lie models that are better on the new pictures and lose
less on the old ones: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mpa_edge.runs.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]


def soften(tuned: Path, base: str, strength: float) -> None:
    """Keep `strength` of the change that training made, in the files of an adapter or of a whole model."""
    from mpa_edge.vlm.transformers import checkpoint

    if strength == 1.0:
        return
    if (tuned / "adapter_config.json").is_file():
        _rewrite(tuned / "adapter_model.safetensors", lambda tensors: scaled(tensors, strength))
        return
    before = dict(checkpoint.load_model(base, "cpu").state_dict())
    for path in sorted(tuned.glob("*.safetensors")):
        _rewrite(path, lambda tensors: between(before, tensors, strength))


def scaled(adapter: Tensors, strength: float) -> Tensors:
    """A LoRA update is B times A: scaling B scales the update."""
    return {name: tensor * strength if ".lora_B." in name else tensor for name, tensor in adapter.items()}


def between(before: Tensors, after: Tensors, strength: float) -> Tensors:
    """Every tensor that far on the way from `before` to `after`, in the type of `after`."""
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
