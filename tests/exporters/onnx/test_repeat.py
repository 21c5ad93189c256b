"""Models of more layers than are traced: the graphs are those of all layers, and layers that differ are all traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnxruntime import InferenceSession
from torch import nn

from mpa_edge.exporters.graphs import build
from mpa_edge.exporters.graphs.modules import Graph
from mpa_edge.exporters.onnx.export import program_of
from mpa_edge.exporters.onnx.repeat import TRACED, shortened
from tests.families import zoo

LAYERS = 6


def deep(which: str, component: str) -> Graph:
    """Of a random model with this many layers."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(str(zoo.checkpoint(which)))
    (config.text_config if component == "decoder" else config.vision_config).num_hidden_layers = LAYERS
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return build(model, component)


def ran(graph: Graph, path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs of the traced graph and of torch, for a sample with other numbers than those that were traced with."""
    program = program_of(graph)
    onnx_ir.save(program.model, path)
    onnx.checker.check_model(str(path))
    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert tuple(value.name for value in session.get_inputs()) == graph.inputs
    assert tuple(value.name for value in session.get_outputs()) == graph.outputs
    sample = [tensor + 0.5 if tensor.is_floating_point() else tensor for tensor in graph.sample]
    feeds = {name: tensor.numpy() for name, tensor in zip(graph.inputs, sample, strict=True)}
    with torch.no_grad():
        expected: Any = graph.module(*sample)
    expected = expected if isinstance(expected, tuple) else (expected,)
    return session.run(None, feeds), [tensor.numpy() for tensor in expected]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["smolvlm decoder", "smolvlm vision", "internvl vision"])
def test_three_traced_layers_become_all_of_them(which: str, tmp_path: Path) -> None:
    graph = deep(*which.split())
    with shortened(graph) as short:
        assert short is not None
        assert len(graph.module.get_submodule(str(graph.stack))) == TRACED
    assert len(graph.module.get_submodule(str(graph.stack))) == LAYERS
    found, expected = ran(graph, tmp_path / "graph.onnx")
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.slow
def test_other_numbers_in_one_layer_than_weights() -> None:
    graph = deep("smolvlm", "decoder")
    graph.module.get_submodule(str(graph.stack))[2].self_attn.scaling *= 2
    with shortened(graph) as short:
        assert short is None


class Layer(nn.Module):
    """Something with a weight."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4, 4), scale))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + torch.tanh(hidden @ self.weight)


class Sum(nn.Module):
    """What all layers gave, and not only the last."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(i / 10) for i in range(LAYERS))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(hidden)
        for layer in self.layers:
            hidden = layer(hidden)
            total = total + hidden
        return total


def test_layers_that_are_joined_otherwise_are_all_traced(tmp_path: Path) -> None:
    graph = Graph(Sum(), (torch.rand(3, 4),), ("x",), ("y",), ({0: "rows"},), "layers")
    found, expected = ran(graph, tmp_path / "graph.onnx")
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
