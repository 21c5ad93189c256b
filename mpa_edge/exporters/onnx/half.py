"""fp32 -> fp16, where fp16 is enough.

Four things are computed in fp32, as transformers does: the square inside an RMSNorm (256 squared is infinite in fp16),
rotary angles (position 2049 has no fp16 number), floats that become an index, a count or a comparison, and recurrent
states, in which every token's rounding would stay.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import ModelProto, NodeProto, TensorProto, helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

DISCRETE = {"Cos", "Sin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
RECURRENT = "LinearAttention"
ROOTS = {"Sqrt", "Rsqrt"}
NORM = {"Sqrt", "Rsqrt", "Add", "ReduceMean", "Pow", "Reciprocal", "Div"}
SQUARE = "Pow"
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
MAX_ANCESTORS = 64
"""A longer chain than this leads into the network itself, not to a position or a mask."""


def to_half(model: ModelProto, full_precision_io: list[str] | None) -> ModelProto:
    """The graph in fp16; the named inputs and outputs stay fp32, all of them where None."""
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{i}"
    recurrent = [node for node in model.graph.node if node.op_type == RECURRENT]
    states = [name for node in recurrent for name in (node.input[3], node.output[1])]
    half = convert_float_to_float16(
        model,
        keep_io_types=True if full_precision_io is None else [*full_precision_io, *states],
        disable_shape_infer=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, RECURRENT],
        node_block_list=sorted(full_precision_nodes(model)),
    )
    # remove fp32 -> fp16 -> fp32 between two nodes that stayed fp32: it would round; the converter also writes the same
    # Cast once for each node that reads it, and one is enough
    nodes = list({node.output[0] if node.output else node.name: node for node in half.graph.node}.values())
    narrowed = {node.output[0]: node.input[0] for node in nodes if _casts_to(node, TensorProto.FLOAT16)}
    widened = {node.output[0]: node.input[0] for node in nodes if _casts_to(node, TensorProto.FLOAT)}
    direct = {
        name: narrowed[source]
        for name, source in widened.items()
        if name.endswith("_cast_to_fp32") and source in narrowed
    }
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = direct.get(name, name)
    read = {name for node in nodes for name in node.input} | {value.name for value in half.graph.output}
    del half.graph.node[:]
    half.graph.node.extend(node for node in nodes if node.op_type != "Cast" or node.output[0] in read)
    return half


def full_precision_nodes(model: ModelProto) -> set[str]:
    """Names of the nodes that must not run in fp16."""
    nodes = list(model.graph.node)
    maker = {name: node for node in nodes for name in node.output}
    kept: set[str] = set()
    for node in nodes:
        to_integer = node.op_type == "Cast" and not any(_casts_to(node, kind) for kind in FLOATS)
        if node.op_type in DISCRETE or to_integer:
            ancestors = _ancestors(node, maker)
            kept |= ancestors if len(ancestors) <= MAX_ANCESTORS else {node.name}
        if node.op_type in ROOTS:
            users = {user.name for user in nodes if node.output[0] in user.input and user.op_type in NORM}
            kept |= _ancestors(node, maker, NORM) | users
    return kept


def _ancestors(node: NodeProto, maker: dict[str, NodeProto], through: Iterable[str] | None = None) -> set[str]:
    """A node and what it is computed from; with `through`, only by way of these operators, and not beyond a square."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current.name in found or (through is not None and current.op_type not in through):
            continue
        found.add(current.name)
        if through is None or current.op_type != SQUARE:
            waiting.extend(maker[name] for name in current.input if name in maker)
    return found


def _casts_to(node: NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and helper.get_node_attr_value(node, "to") == kind
