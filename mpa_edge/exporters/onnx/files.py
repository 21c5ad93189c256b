"""ONNX graphs on disk: read for a quantizer, checked, and written so that no partial file has a final name."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnxruntime.quantization.onnx_model import ONNXModel

from mpa_edge.runs.files import disk_errors, fsync_folder
from mpa_edge.runs.paths import copy, move, new_file, remove

EMBEDDED_BYTES = 1_900_000_000
"""Weights above this go into a file of their own: protobuf is limited to 2 GB."""
FLOATS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}
LENGTH_DELIMITED = 2
COPIED_BYTES = 16_000_000


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` for intermediate files; what a killed process left there is removed first."""
    folder = out.parent / f".{out.name}.work"
    remove(folder)
    try:
        with disk_errors(out.parent, 2 * EMBEDDED_BYTES):
            folder.mkdir(parents=True)
            yield folder
    finally:
        remove(folder, quietly=True)


def prepare(path: Path, folder: Path) -> Path:
    """A copy of a graph in `folder` in the form that quantizers want; returns its path.

    Every Gemm becomes MatMul and Add, type annotations of weights are removed (they would become stale), and the
    weights are in a file of their own: shape inference then does not copy them.
    """
    light, data = onnx.load(path, load_external_data=False), path.with_name(f"{path.name}_data")
    # large weights stay where they are, unless a Gemm's must be turned
    shared = data.is_file() and all(node.op_type != "Gemm" for node in light.graph.node)
    model = ONNXModel(light if shared else onnx.load(path))
    del light
    model.replace_gemm_with_matmul()
    graph = model.model.graph
    weights = {tensor.name for tensor in graph.initializer}
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    kept = [value for value in graph.value_info if value.name not in weights]
    for node in graph.node:
        # between the MatMul and the Add that were a Gemm: the type is that of the output
        if node.op_type == "Add" and node.input[0] == f"{node.output[0]}_MatMul":
            value = ValueInfoProto()
            value.CopyFrom(known[node.output[0]])
            value.name = node.input[0]
            kept.append(value)
    del graph.value_info[:]
    graph.value_info.extend(kept)
    target = folder / "source.onnx"
    if shared:
        copy(data, folder / f"{target.name}_data")  # onnx refuses a hard link
        for tensor in graph.initializer:
            for entry in tensor.external_data:
                entry.value = f"{target.name}_data" if entry.key == "location" else entry.value
        onnx.save_model(model.model, target)
    else:
        onnx.save_model(model.model, target, save_as_external_data=True, location=f"{target.name}_data")
    return target


def read_weights(tensors: Iterable[TensorProto], folder: Path) -> None:
    """Read what tensors have in a file of `folder` into memory."""
    for tensor in tensors:
        if uses_external_data(tensor):
            load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]


def is_large(prepared: Path) -> bool:
    """Whether the weights of a prepared graph are more than one protobuf can hold."""
    data = prepared.with_name(f"{prepared.name}_data")
    return data.is_file() and data.stat().st_size > EMBEDDED_BYTES


def save(model: ModelProto, path: Path) -> None:
    """Sort a graph's nodes as the format demands, and write it, large weights to `path`_data."""
    ONNXModel(model).topological_sort()
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > EMBEDDED_BYTES:
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}_data")
    else:
        onnx.save_model(model, path)


def publish(made: Path, out: Path) -> None:
    """Check and load a graph, then give it its final name: weights first, the graph that names them last."""
    check(made)
    for path in sorted(made.parent.glob(f"{made.name}*"), reverse=True):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        move(path, out.parent / path.name)
    fsync_folder(out.parent)


def check(path: Path) -> None:
    """Raise where a file is not a valid graph, or ONNX Runtime cannot load it."""
    import onnxruntime

    onnx.checker.check_model(str(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def kept_wide(model: ModelProto, source: Path, component: str) -> list[str]:
    """One sentence where weights of `source` that could have been quantized were not; empty where all were."""

    def matrices(graph: onnx.GraphProto) -> dict[str, TensorProto]:
        return {t.name: t for t in graph.initializer if t.data_type in FLOATS and len(t.dims) > 1}

    before = matrices(onnx.load(source, load_external_data=False).graph)
    wide = [tensor for name, tensor in matrices(model.graph).items() if name in before]
    if not wide:
        return []
    largest = max(wide, key=lambda tensor: math.prod(tensor.dims))
    share = sum(math.prod(t.dims) for t in wide) / sum(math.prod(t.dims) for t in before.values())
    counted = f"{len(wide)} of {len(before)} weights ({share:.1%} of the parameters)"
    return [f"{component}: {counted} stay {FLOATS[largest.data_type]}, the largest is {largest.name}"]


# --- one file from a graph and its weights, without the weights in memory: protobuf's own writer needs them three times


def varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first.

    >>> varint(300).hex()
    'ac02'
    """
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def embed_weights(graph: Path, out: Path) -> None:
    """Write `graph`, whose weights are in a file beside it, as one file of less than 2 GB.

    A protobuf message is a sequence of fields, each a tag, a length and its bytes, in any order
    (https://protobuf.dev/programming-guides/encoding). So the weights can be copied from file to file behind the rest.
    """
    model = onnx.load(graph, load_external_data=False)
    # (bytes of a tensor up to its data, file of the data, offset in it, length); a small tensor is complete
    weights: list[tuple[bytes, str, int, int]] = []
    for tensor in model.graph.initializer:
        if not tensor.external_data:
            weights.append((tensor.SerializeToString(), "", 0, 0))
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        start = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims).SerializeToString()
        n_bytes = int(place["length"])
        start += _field_head(TensorProto.RAW_DATA_FIELD_NUMBER, n_bytes)
        weights.append((start, place["location"], int(place.get("offset", 0)), n_bytes))
    del model.graph.initializer[:]
    body = model.graph.SerializeToString()
    model.ClearField("graph")
    heads = [
        _field_head(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, len(start) + n_bytes) for start, _, _, n_bytes in weights
    ]
    sizes = (len(head) + len(start) + n_bytes for head, (start, _, _, n_bytes) in zip(heads, weights, strict=True))
    with new_file(out) as file:
        file.write(model.SerializeToString())
        file.write(_field_head(onnx.ModelProto.GRAPH_FIELD_NUMBER, len(body) + sum(sizes)) + body)
        for head, (start, location, offset, n_bytes) in zip(heads, weights, strict=True):
            file.write(head + start)
            if not location:
                continue
            with (graph.parent / location).open("rb") as data:
                data.seek(offset)
                while n_bytes > 0:
                    if not (chunk := data.read(min(n_bytes, COPIED_BYTES))):
                        raise EOFError(f"{graph.parent / location} ends before its last tensor")
                    file.write(chunk)
                    n_bytes -= len(chunk)


def _field_head(field: int, n_bytes: int) -> bytes:
    """What comes before the bytes of a field."""
    return varint(field << 3 | LENGTH_DELIMITED) + varint(n_bytes)
