"""Equal layers, of which three are traced.

The tracer takes seconds of CPU for each layer, and what it says of all layers but the first and the last is the
same. So those two are traced with one between them, and the graph of that one is repeated with the weights of the
others. Where layers differ in more than their weights, or the graph of one is not what is expected, all are traced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from mpa_edge.exporters.graphs.modules import Graph

TRACED = 3
"""The first layer, the second, and the last."""
LAYER = re.compile(r"\.(\d+)\.")
SHARED = -1
"""Layer of what belongs to none."""


class NotAlikeError(Exception):
    """The graphs of the traced layers are not alike."""


@dataclass(frozen=True)
class Short:
    """A graph with three layers, and what makes it whole again."""

    graph: Graph
    whole: Graph
    n_layers: int
    weights: dict[str, Tensor]
    """Name -> tensor, of all layers."""


@contextmanager
def shortened(graph: Graph) -> Iterator[Short | None]:
    """A graph without most of its layers, for as long as the context lasts; None where it needs them."""
    module, path = graph.module, graph.stack
    layers = list(module.get_submodule(path)) if path else []
    if path is None or len(layers) <= TRACED or any(_described(one) != _described(layers[0]) for one in layers[1:]):
        yield None
        return
    traced, last = (0, 1, len(layers) - 1), [part for part in layers[-1].modules() if hasattr(part, "layer_idx")]
    weights = {f"{path}.{name}": tensor for name, tensor in module.get_submodule(path).state_dict().items()}

    def chosen(names: tuple[str, ...]) -> list[int]:
        found = [LAYER.search(name) for name in names]
        return [i for i, one in enumerate(found) if one is None or int(one[1]) in traced]

    def put(now: list[Any], kept: Any, index: int) -> None:
        module.set_submodule(path, nn.ModuleList(now))
        if kept:
            module.kept = kept
        for part in last:
            part.layer_idx = index

    inputs, kept = chosen(graph.inputs), getattr(module, "kept", None)
    put([layers[i] for i in traced], kept[:TRACED] if kept else None, TRACED - 1)
    try:
        short = replace(
            graph,
            sample=tuple(graph.sample[i] for i in inputs),
            inputs=tuple(graph.inputs[i] for i in inputs),
            outputs=tuple(graph.outputs[i] for i in chosen(graph.outputs)),
            axes=tuple(graph.axes[i] for i in inputs),
        )
        yield Short(short, graph, len(layers), weights)
    finally:
        put(layers, kept, len(layers) - 1)


def _described(layer: nn.Module) -> list[Any]:
    """What layers that differ in their weights only have in common."""
    return [
        (
            name,
            type(part),
            {key: tensor.shape for key, tensor in part.state_dict().items()},
            {key: x for key, x in vars(part).items() if isinstance(x, bool | int | float | str) and key != "layer_idx"},
        )
        for name, part in layer.named_modules()
    ]


def repeat(model: ir.Model, short: Short) -> None:
    """Put the other layers into the graph of three, in place. NotAlikeError, with the model as it was, if it cannot."""
    graph, last = model.graph, short.n_layers - 1
    traced = Traced(graph, short)
    slots = traced.slots()
    for value in [value for value, layer in traced.layer.items() if layer == TRACED - 1 and value.is_initializer()]:
        graph.initializers.pop(str(value.name))
        value.name = _renamed(str(value.name), last)
        graph.register_initializer(value)
    made: dict[ir.Value, ir.Value] = {}
    for layer in range(2, last):
        made = traced.copy(layer, {ours: made.get(theirs, theirs) for ours, theirs in slots.items()})
    for node in traced.blocks[2]:
        for i, taken in enumerate(node.inputs):
            if taken in made:
                node.replace_input_with(i, made[taken])
    graph.inputs[:] = [traced.ports[name] for name in short.whole.inputs]
    graph.outputs[:] = [traced.ports[name] for name in short.whole.outputs]
    graph.sort()


def _renamed(name: str, layer: int) -> str:
    """A name with another number of the layer.

    >>> _renamed("present.1.key", 5), _renamed("language.layers.1.mlp.up_proj.weight", 5)
    ('present.5.key', 'language.layers.5.mlp.up_proj.weight')
    """
    return LAYER.sub(f".{layer}.", name, count=1)


def _layer_of(name: str) -> int:
    found = LAYER.search(name)
    return int(found[1]) if found else SHARED


class Traced:
    """The graph of three layers, taken apart."""

    def __init__(self, graph: ir.Graph, short: Short) -> None:
        self.graph, self.weights = graph, short.weights
        self.ports = {str(value.name): value for value in (*graph.inputs, *graph.outputs)}
        """Inputs and outputs by name, with those of the copies."""
        self.layer: dict[ir.Value, int] = {}
        """The last layer that a value is made of."""
        places = {0: 0, 1: 1, short.n_layers - 1: TRACED - 1}
        for value in graph.inputs:
            self.layer[value] = places.get(_layer_of(str(value.name)), SHARED)
        for name, value in graph.initializers.items():
            self.layer[value] = _layer_of(name) if name.startswith(f"{short.whole.stack}.") else SHARED
        self.blocks: list[list[ir.Node]] = [[] for _ in range(TRACED)]
        for node in graph:
            own = max((self.layer[value] for value in node.inputs if value), default=SHARED)
            own = SHARED if node.op_type == "Shape" else own  # sizes are the same in every layer
            self.layer |= dict.fromkeys(node.outputs, own)
            if own != SHARED:
                self.blocks[own].append(node)

    def copy(self, layer: int, inputs: dict[ir.Value, ir.Value]) -> dict[ir.Value, ir.Value]:
        """Add layer 1 once more, as another layer; what layer 1 makes -> what this one makes.

        `inputs`: what layer 1 takes from layer 0 -> what this one takes from the layer before.
        """
        made: dict[ir.Value, ir.Value] = {}
        for node in self.blocks[1]:
            outputs = [self._made(value, layer) for value in node.outputs]
            own = ir.Node(
                node.domain,
                node.op_type,
                [value and self._taken(value, layer, inputs | made) for value in node.inputs],
                attributes=node.attributes.values(),
                outputs=outputs,
                name=f"{node.name}/layer_{layer}",
            )
            self.graph.append(own)
            made |= dict(zip(node.outputs, outputs, strict=True))
        return made

    def _made(self, value: ir.Value, layer: int) -> ir.Value:
        """A layer's own form of what layer 1 makes."""
        if not value.is_graph_output():
            return ir.Value(name=f"{value.name}/layer_{layer}", shape=value.shape, type=value.type)
        name = _renamed(str(value.name), layer)
        self.ports[name] = ir.Value(name=name, shape=value.shape, type=value.type)
        return self.ports[name]

    def _taken(self, value: ir.Value, layer: int, known: dict[ir.Value, ir.Value]) -> ir.Value:
        """A layer's own form of what layer 1 takes."""
        if self.layer[value] == SHARED:
            return value
        if value in known:
            return known[value]
        name = _renamed(str(value.name), layer)
        if value.is_graph_input():
            return self.ports.setdefault(name, ir.Value(name=name, shape=value.shape, type=value.type))
        if name not in self.graph.initializers:
            tensor = ir.tensor(self.weights[name].detach().numpy(), name=name)
            own = ir.Value(name=name, shape=value.shape, type=value.type, const_value=tensor)
            self.graph.register_initializer(own)
        return self.graph.initializers[name]

    def slots(self) -> dict[ir.Value, ir.Value]:
        """What layer 1 takes from layer 0 -> what layer 2 takes from layer 1. NotAlikeError if they do otherwise."""
        one, two = self.blocks[1:]
        same: dict[ir.Value, ir.Value] = {}
        if len(one) > len(two):
            raise NotAlikeError
        for ours, theirs in zip(one, two[: len(one)], strict=True):
            if not _same_operator(ours, theirs):
                raise NotAlikeError
            for a, b in zip(ours.inputs, theirs.inputs, strict=True):
                if not self._correspond(a, b, same):
                    raise NotAlikeError
            same |= dict(zip(ours.outputs, theirs.outputs, strict=True))
        made = {value for node in one for value in node.outputs}
        slots = {a: b for a, b in same.items() if self.layer[a] == 0}
        allowed = set(one) | set(two)
        for value in made:
            users = {use.node for use in value.uses()}
            outside = [node for node in users - set(one) if node.op_type != "Shape"]
            if any(node not in allowed for node in outside) or (outside and value not in slots.values()):
                raise NotAlikeError
        if not set(slots.values()) <= made:
            raise NotAlikeError
        return slots

    def _correspond(self, a: ir.Value | None, b: ir.Value | None, same: dict[ir.Value, ir.Value]) -> bool:
        """Whether layer 2 takes b where layer 1 takes a."""
        if a is None or b is None:
            return a is b
        if a in same:
            return same[a] is b
        if self.layer[a] == SHARED:
            return a is b or _equal(a, b)
        if self.layer[a] == 0:  # once for all uses
            same[a] = b
            return self.layer[b] == 1
        # a weight or a port of the layer
        return a.producer() is None and b.producer() is None and self.layer[b] == TRACED - 1


def _same_operator(a: ir.Node, b: ir.Node) -> bool:
    attributes = [{name: str(one.value) for name, one in node.attributes.items()} for node in (a, b)]
    shape = [(node.domain, node.op_type, len(node.inputs), len(node.outputs)) for node in (a, b)]
    return shape[0] == shape[1] and attributes[0] == attributes[1]


def _equal(a: ir.Value, b: ir.Value) -> bool:
    """Whether two constants are."""
    if a.const_value is None or b.const_value is None:
        return False
    return bool(np.array_equal(a.const_value.numpy(), b.const_value.numpy()))
