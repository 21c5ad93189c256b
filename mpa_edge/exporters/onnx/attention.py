"""The attention of a vision encoder as one operator of ONNX Runtime, which never holds all scores at once.

`grouped_attention` (graphs/modules.py) is traced as product, mask, softmax and product: for SmolVLM's 1,024 patches and
12 heads, the scores alone are 50 MB, written and read four times a layer. `MultiHeadAttention` of com.microsoft works
through them in blocks that fit the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

CONTRIB = "com.microsoft"
AS_KEYS, AS_ROWS, ONE_MORE, ONE = (f"attention/{name}" for name in ("keys", "rows", "one_more", "one"))
CONSTANTS = {
    AS_KEYS: np.array([0, -1, 1, 1]),
    AS_ROWS: np.array([0, 0, -1]),
    ONE_MORE: np.array([0, 0, 0, 0, 0, 0, 0, 1]),
    ONE: np.array(1, np.float32),
}


@dataclass(frozen=True)
class Attention:
    """One attention of a graph. Tensors are (B, H, S, D), the keys (B, H, D, T), by name."""

    query: str
    keys: str
    values: str
    mask: str | None
    """Added to the scores: one number for each key."""
    scale: float
    heads: int
    end: NodeProto
    """Turns the result into (B, S, H, D)."""


def fuse_attention(model: ModelProto) -> int:
    """Replace every attention that the operator can do, in place; how many there were.

    It takes no mask in its quick form. A mask of whole keys becomes one more channel of them instead, which meets a 1
    in the queries. Attention with another mask (Qwen's windows) or with fewer keys than queries stays as it is.
    """
    graph = Nodes(model)
    made = {found.end.output[0]: found for node in model.graph.node if (found := graph.attention(node))}
    nodes: list[NodeProto] = []
    masks: dict[tuple[str, float], str] = {}
    for node in model.graph.node:
        nodes += graph.fused(made[node.output[0]], masks) if node.output[0] in made else [node]
    if made:
        constants = CONSTANTS | graph.constants
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        _keep(model, _needed(nodes, {output.name for output in model.graph.output}))
    return len(made)


class Nodes:
    """A graph's nodes by what they make and read."""

    def __init__(self, model: ModelProto) -> None:
        nodes = model.graph.node
        self.makers = {name: node for node in nodes for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.weights: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.shapes: dict[str, list[int]] = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.value_info
        }
        self.constants: dict[str, np.ndarray] = {}
        """Those that the new nodes read, beside `CONSTANTS`."""

    def attention(self, softmax: NodeProto) -> Attention | None:
        """The attention around a softmax; None where it is another one, or another node."""
        if softmax.op_type != "Softmax":
            return None
        before, after = self._maker(softmax.input[0]), self._reader(softmax.output[0])
        mask = None
        if before and before.op_type == "Add":
            mask = before.input[1]
            if self.shapes.get(mask, [0, 0])[-2] != 1:
                return None
            before = self._maker(before.input[0])
        end = self._reader(after.output[0]) if after and after.op_type == "MatMul" else None
        if not (before and after and end and before.op_type == "MatMul" and _turns(end, (0, 2, 1, 3))):
            return None
        query, scale = self._unscaled(before.input[0])
        keys, values = before.input[1], after.input[1]
        shapes = [self.shapes.get(name, ()) for name in (query, keys, values)]
        heads = {shape[1] for shape in shapes if len(shape) == 4}
        if len(heads) != 1 or 0 in heads or any(len(shape) != 4 for shape in shapes):
            return None
        return Attention(query, keys, values, mask, scale, heads.pop(), end)

    def fused(self, one: Attention, masks: dict[tuple[str, float], str]) -> Iterator[NodeProto]:
        """The nodes in its place. `masks`: those that nodes before have made."""
        name = f"{one.end.output[0]}/fused"
        query, keys, values = (f"{name}/{part}" for part in ("query", "keys", "values"))
        yield helper.make_node("Transpose", [one.query], [query], perm=[0, 2, 1, 3])
        yield helper.make_node("Transpose", [one.keys], [keys], perm=[0, 3, 1, 2])
        yield helper.make_node("Transpose", [one.values], [values], perm=[0, 2, 1, 3])
        if one.mask:
            key = (one.mask, one.scale)
            if key not in masks:
                masks[key] = f"{name}/mask"
                self.constants |= {
                    f"{name}/each": np.array([1, 1, one.heads, 1]),
                    f"{name}/scale": np.array(1 / one.scale, np.float32),
                }
                yield helper.make_node("Reshape", [one.mask, AS_KEYS], [f"{name}/of_key"])
                yield helper.make_node("Mul", [f"{name}/of_key", f"{name}/scale"], [f"{name}/of_head"])
                yield helper.make_node("Expand", [f"{name}/of_head", f"{name}/each"], [masks[key]])
            yield helper.make_node("Pad", [query, ONE_MORE, ONE], [f"{query}/wide"])
            yield helper.make_node("Concat", [keys, masks[key]], [f"{keys}/wide"], axis=3)
            query, keys = f"{query}/wide", f"{keys}/wide"
        rows = [f"{part}/rows" for part in (query, keys, values)]
        for part, row in zip((query, keys, values), rows, strict=True):
            yield helper.make_node("Reshape", [part, AS_ROWS], [row])
        options = {"num_heads": one.heads, "scale": one.scale}
        yield helper.make_node("MultiHeadAttention", rows, [name], domain=CONTRIB, **options)
        self.constants[f"{name}/heads"] = np.array([0, 0, one.heads, -1])
        yield helper.make_node("Reshape", [name, f"{name}/heads"], [one.end.output[0]])

    def _unscaled(self, name: str) -> tuple[str, float]:
        """(queries, the number by which they were multiplied)."""
        node = self._maker(name)
        if node and node.op_type == "Mul" and node.input[1] in self.weights:
            factor = numpy_helper.to_array(self.weights[node.input[1]])
            if factor.size == 1:
                return node.input[0], float(factor)
        return name, 1.0

    def _maker(self, name: str) -> NodeProto | None:
        """The node that made a tensor, before it was reshaped."""
        node = self.makers.get(name)
        return self._maker(node.input[0]) if node and node.op_type == "Reshape" else node

    def _reader(self, name: str) -> NodeProto | None:
        """The only node that reads a tensor, after it was reshaped."""
        nodes = self.readers.get(name, [])
        if len(nodes) != 1:
            return None
        return self._reader(nodes[0].output[0]) if nodes[0].op_type == "Reshape" else nodes[0]


def _turns(node: NodeProto, axes: tuple[int, ...]) -> bool:
    return node.op_type == "Transpose" and tuple(node.attribute[0].ints) == axes


def _needed(nodes: Iterable[NodeProto], outputs: set[str]) -> list[NodeProto]:
    """The nodes that the outputs are made of, in order."""
    kept = []
    for node in reversed(list(nodes)):
        if outputs.intersection(node.output):
            kept.append(node)
            outputs.update(node.input)
    return kept[::-1]


def _keep(model: ModelProto, nodes: list[NodeProto]) -> None:
    """Leave these nodes in a graph, with the types of what they make and the weights that they read."""
    graph = model.graph
    made = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in node.input}
    for field, kept in (
        (graph.node, nodes),
        (graph.value_info, [value for value in graph.value_info if value.name in made]),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read]),
    ):
        del field[:]
        field.extend(kept)
