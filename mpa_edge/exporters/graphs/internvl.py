"""InternVL: an image is split into tiles of one size, each encoded alone; four tokens become one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpa_edge.exporters.graphs.llava import used_layers
from mpa_edge.exporters.graphs.modules import Graph, onnx_form


class Vision(nn.Module):
    """Tower, pixel shuffle and projector."""

    def __init__(self, core: Any, config: Any) -> None:
        super().__init__()
        tower = core.vision_tower
        (layer,) = used_layers(config.vision_feature_layer, len(tower.encoder.layer))
        self.embeddings, self.projector = tower.embeddings, core.multi_modal_projector
        self.layers = nn.ModuleList(tower.encoder.layer[:layer])
        # only the last hidden state is normalized
        self.after = tower.layernorm if config.vision_feature_layer == -1 else nn.Identity()
        self.drop_class_token = config.vision_feature_select_strategy == "default"
        self.side = round(1 / config.downsample_ratio)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, patches / side^2, text hidden)."""
        hidden = self.embeddings(pixel_values)
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = self.after(hidden)
        return self.projector(shuffled(hidden[:, 1:] if self.drop_class_token else hidden, self.side))


def shuffled(hidden: Tensor, side: int) -> Tensor:
    """(N, patches, C) of a square -> (N, patches / side^2, C side^2): pixel shuffle, neighbours become one token."""
    count, patches, channels = hidden.shape
    n = int(patches**0.5) // side
    blocks = hidden.reshape(count, n, side, n, side, channels).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(count, n * n, channels * side**2)


def vision(model: Any) -> Graph:
    """Graph of the vision encoder with its projector."""
    config = model.config
    size = config.vision_config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return Graph(
        onnx_form(Vision(model.model, config)),
        (torch.rand(2, 3, height, width),),
        ("pixel_values",),
        ("image_features",),
        ({0: "num_images"},),
        "layers",
    )
