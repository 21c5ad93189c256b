"""LLaVA with a SigLIP tower (TinyLLaVA) or a CLIP tower: one image, one row of patches, a small projector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpa_edge.errors import MpaError
from mpa_edge.exporters.graphs.modules import Graph, onnx_form

TOWERS = ("siglip_vision_model", "clip_vision_model")


class Vision(nn.Module):
    """Tower up to the layers that are used, and the projector."""

    def __init__(self, tower: Any, projector: nn.Module, layers: tuple[int, ...], drop_class_token: bool) -> None:
        super().__init__()
        self.embeddings, self.projector = tower.embeddings, projector
        self.before = getattr(tower, "pre_layrnorm", nn.Identity())
        self.layers = nn.ModuleList(tower.encoder.layers[: max(layers)])
        self.used = tuple(i - max(layers) - 1 for i in layers)  # from the end
        self.drop_class_token = drop_class_token

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, patches, text hidden)."""
        states = [self.before(self.embeddings(pixel_values))]
        for layer in self.layers:
            states.append(layer(states[-1], attention_mask=None))
        found = torch.cat([states[i] for i in self.used], -1)
        return self.projector(found[:, 1:] if self.drop_class_token else found)


def used_layers(named: int | list[int], n_layers: int) -> tuple[int, ...]:
    """Indices of hidden states, counted from the front; the embeddings are number 0.

    >>> used_layers(-2, 24), used_layers([-1, 3], 24)
    ((23,), (24, 3))
    """
    return tuple(i if i >= 0 else n_layers + 1 + i for i in ([named] if isinstance(named, int) else named))


def vision(model: Any) -> Graph:
    """Graph of the vision encoder with its projector. MpaError for a tower that is neither SigLIP nor CLIP."""
    core, config = model.model, model.config
    tower = config.vision_config
    if tower.model_type not in TOWERS:
        raise MpaError(
            f"llava with a '{tower.model_type}' tower has no ONNX graph: use one with a SigLIP or CLIP tower"
        )
    layers = used_layers(config.vision_feature_layer, tower.num_hidden_layers)
    drops = config.vision_feature_select_strategy == "default"
    return Graph(
        onnx_form(Vision(core.vision_tower, core.multi_modal_projector, layers, drops)),
        (torch.rand(2, 3, tower.image_size, tower.image_size),),
        ("pixel_values",),
        ("image_features",),
        ({0: "num_images"},),
        "layers" if len(layers) == 1 else None,
    )
