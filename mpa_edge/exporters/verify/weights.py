"""A look at every weight of a file as plain numbers, whatever it is packed in: safetensors, ONNX, GGUF.

Of each tensor a grid of rows and columns is read, spread over all of it: enough to know a tensor again, a thousandth of
the memory. Quantized numbers are turned back into what they stand for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpa_edge.errors import MpaError
from mpa_edge.vlm.llama_cpp.gguf_header import read_header

Array = NDArray[Any]
GRID = 96
"""Rows and columns of a tensor that are looked at."""


@dataclass(frozen=True)
class Look:
    """What is seen of one tensor."""

    name: str
    """In its file."""
    shape: tuple[int, ...]
    """(n,) or (rows, columns); axes of one are dropped, those behind the first are laid out as one."""
    values: Array
    """float32, 1-D or the grid of rows and columns."""


Index = dict[tuple[int, ...], list[Look]]


def grid(n: int) -> Array:
    """Indices spread over an axis of `n`.

    >>> grid(3).tolist()
    [0, 1, 2]
    """
    return np.unique(np.linspace(0, n - 1, min(n, GRID)).astype(np.int64))


def flat(array: Array) -> Array:
    """Axes of one dropped, the rest as (n,) or (rows, columns).

    >>> flat(np.zeros((1, 4, 3, 2))).shape
    (4, 6)
    """
    kept = array.reshape([n for n in array.shape if n != 1])
    return kept.reshape(-1) if kept.ndim < 2 else kept.reshape(kept.shape[0], -1)


def look(name: str, array: Array) -> Look:
    """The grid of a tensor of plain numbers."""
    plain = flat(array)
    chosen = plain[grid(len(plain))] if plain.ndim == 1 else plain[np.ix_(grid(plain.shape[0]), grid(plain.shape[1]))]
    return Look(name, plain.shape, chosen.astype(np.float32))


def exported(path: Path) -> Index:
    """Every floating point weight of an exported file, by shape. MpaError where it is damaged."""
    index: Index = defaultdict(list)
    try:
        for found in _onnx(path) if path.suffix == ".onnx" else _gguf(path):
            index[found.shape].append(found)
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise MpaError(f"the weights of {path.name} cannot be read ({why[:200]}): export again with --fresh") from error
    return index


class Stored:
    """Tensors of a checkpoint's safetensors files, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        import ml_dtypes  # noqa: F401  # importing it teaches numpy bfloat16
        from safetensors import safe_open

        paths = sorted(folder.glob("*.safetensors"))
        self._files: dict[Path, Any] = {path: safe_open(path, framework="np") for path in paths}
        self._home = {name: path for path, file in self._files.items() for name in file.keys()}  # noqa: SIM118
        self.names = sorted(name for name in self._home if self._is_float(name))

    def _is_float(self, name: str) -> bool:
        return str(self._files[self._home[name]].get_slice(name).get_dtype()) in ("F64", "F32", "F16", "BF16")

    def get(self, name: str) -> Array:
        """All numbers of a tensor, in the type they are stored in."""
        return self._files[self._home[name]].get_tensor(name)


# --- GGUF -------------------------------------------------------------------------------------------------------------


def _gguf(path: Path) -> Iterator[Look]:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    read_header(path)  # with limits: the library believes what a file says
    for tensor in GGUFReader(path).tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        data = tensor.data
        if data.dtype.kind == "f":
            yield look(tensor.name, data.reshape(shape))
            continue
        packed = data.reshape(-1, data.shape[-1])  # whole rows: a block of numbers shares its scale
        rows = grid(len(packed))
        values = dequantize(packed[rows], tensor.tensor_type)
        yield Look(tensor.name, (len(packed), values.shape[1]), values[:, grid(values.shape[1])].astype(np.float32))


# --- ONNX -------------------------------------------------------------------------------------------------------------


DEQUANTIZE = "DequantizeLinear"
# operators with weights in blocks of a few bits -> which of their inputs the weights are
BLOCKS = {"MatMulNBits": 1, "GatherBlockQuantized": 0}


def _onnx(path: Path) -> Iterator[Look]:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

    try:
        graph = onnx.load(path).graph
    except DecodeError as error:
        raise ValueError(f"no ONNX graph, {error}") from error
    tensors = _constants(graph)
    packed = [node for node in graph.node if node.op_type in BLOCKS and node.input[BLOCKS[node.op_type]] in tensors]
    yield from (_unpacked(node, tensors) for node in packed)
    done = {name for node in packed for name in node.input}
    scaled = _scaled_tensors(graph, tensors)
    for name, tensor in tensors.items():
        if name in scaled:
            yield _scaled(name, *scaled[name], tensors)
        elif name not in done and not name.endswith(("_scale", "_zero_point")) and tensor.data_type in _floats():
            yield look(name, _numbers(tensor))


def _constants(graph: Any) -> dict[str, Any]:
    """Every tensor that a graph brings along, by name."""
    nodes = [node for node in graph.node if node.op_type == "Constant"]
    values = {node.output[0]: _attributes(node).get("value") for node in nodes}
    return {tensor.name: tensor for tensor in graph.initializer} | {k: v for k, v in values.items() if v is not None}


def _floats() -> tuple[int, ...]:
    from onnx import TensorProto

    return (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def _numbers(tensor: Any) -> Array:
    from onnx.numpy_helper import to_array

    return np.asarray(to_array(tensor))


def _attributes(node: Any) -> dict[str, Any]:
    from onnx.helper import get_attribute_value

    return {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}


def _scaled_tensors(graph: Any, tensors: dict[str, Any]) -> dict[str, tuple[str, str, int]]:
    """Weights in 8 or 32 bits: name -> (their scale, their zero point, the axis along which they differ).

    An operator says so, or, where activations are quantized while running, only the names that the quantizer gives.
    """
    stems = [name.removesuffix("_quantized") for name in tensors if name.endswith("_quantized")]
    named = {f"{stem}_quantized": (f"{stem}_scale", f"{stem}_zero_point", -1) for stem in stems}
    nodes = [node for node in graph.node if node.op_type == DEQUANTIZE and node.input[0] in tensors]
    said = {node.input[0]: ((*node.input[1:3], "")[:2], _attributes(node).get("axis", 1)) for node in nodes}
    known = named | {name: (*inputs, axis) for name, (inputs, axis) in said.items()}
    return {name: found for name, found in known.items() if found[0] in tensors}


def _scaled(name: str, scales: str, zeros: str, axis: int, tensors: dict[str, Any]) -> Look:
    """A tensor with one scale, or one along an axis."""
    stored, scale = _numbers(tensors[name]), _numbers(tensors[scales]).astype(np.float32).reshape(-1)
    zero: Array = _numbers(tensors[zeros]).astype(np.float32).reshape(-1) if zeros in tensors else np.zeros(1)
    shape = [1] * stored.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    zero = np.broadcast_to(zero, scale.shape).reshape(shape)
    return look(name, (stored.astype(np.float32) - zero) * scale.reshape(shape))


def _unpacked(node: Any, tensors: dict[str, Any]) -> Look:
    """Rows of blocks: (packed + scale + zero point) -> the numbers of a grid of rows and columns."""
    options = _attributes(node)
    bits, size = options.get("bits", 4), options["block_size"]
    # the activations and the ids to look up are no constants
    weights, scales, *rest = [_numbers(tensors[name]) for name in node.input if name in tensors]
    n_rows = weights.shape[0]
    rows = grid(n_rows)
    scales = scales.astype(np.float32).reshape(n_rows, -1)[rows]
    n_blocks = scales.shape[1]
    values = _integers(weights.reshape(n_rows, -1)[rows], bits)[:, : n_blocks * size]
    if rest:
        zeros = _integers(rest[0].reshape(n_rows, -1)[rows], bits)[:, :n_blocks]
    else:
        zeros = np.full_like(scales, 2 ** (bits - 1) if weights.dtype == np.uint8 else 0)
    width: int = options.get("K") or values.shape[1]
    columns = grid(width)
    plain = (values[:, columns] - zeros[:, columns // size]) * scales[:, columns // size]
    return Look(node.input[BLOCKS[node.op_type]], (n_rows, width), plain.astype(np.float32))


def _integers(packed: Array, bits: int) -> Array:
    """(rows, bytes) of packed numbers, the lowest bits first -> (rows, numbers); 4-bit types come unpacked already."""
    if packed.dtype != np.uint8:
        return packed.astype(np.float32)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (packed[:, :, None] >> shifts) & np.uint8(2**bits - 1)
    return numbers.reshape(len(packed), -1).astype(np.float32)
