"""ONNX graphs on disk: read for a quantizer, checked, and written so that no half file has a final name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnxruntime.quantization.onnx_model import ONNXModel

from mpa_edge.runs import disk_errors, fsync_folder

EMBEDDED_BYTES = 1_900_000_000
"""Weights above this go into a file of their own: a protobuf ends at 2 GB."""
FLOATS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` for files in between; what a killed process left there goes first."""
    folder = out.parent / f".{out.name}.work"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with disk_errors(out.parent, 2 * EMBEDDED_BYTES):
            folder.mkdir(parents=True)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prepared(path: Path) -> ModelProto:
    """A graph as quantizers want it: every Gemm as MatMul and Add, no type notes on weights (they would go stale)."""
    model = ONNXModel(onnx.load(path))
    model.replace_gemm_with_matmul()
    graph = model.model.graph
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in weights]
    kept += _between(model.model)
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return model.model


def _between(model: ModelProto) -> list[ValueInfoProto]:
    """Types of what stands between the MatMul and the Add that were a Gemm: those of its output."""
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    added = (node for node in model.graph.node if node.op_type == "Add" and node.input[0] == f"{node.output[0]}_MatMul")
    found = []
    for node in added:
        value = ValueInfoProto()
        value.CopyFrom(known[node.output[0]])
        value.name = node.input[0]
        found.append(value)
    return found


def n_bytes(model: ModelProto) -> int:
    """Bytes of the weights, without serializing anything."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def save(model: ModelProto, path: Path) -> None:
    """Write a graph, its weights in `path`_data where they are large."""
    if n_bytes(model) > EMBEDDED_BYTES:
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}_data")
    else:
        onnx.save_model(model, path)


def publish(model: ModelProto, out: Path, folder: Path) -> None:
    """Write, check and load a graph inside `folder`, then give it its name: weights first, then the graph."""
    sort(model)
    written = folder / out.name
    save(model, written)
    model.Clear()
    check(written)
    for path in sorted(folder.glob(f"{out.name}*"), reverse=True):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(path, out.parent / path.name)
    fsync_folder(out.parent)


def sort(model: ModelProto) -> None:
    """Nodes in the order in which they can run, as the format demands."""
    ONNXModel(model).topological_sort()


def check(path: Path) -> None:
    """Raise where a file is no valid graph, or ONNX Runtime cannot load it."""
    import onnxruntime

    onnx.checker.check_model(str(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def float_tables(model: ModelProto) -> dict[str, int]:
    """Weights of two or more axes in floating point: name -> elements."""
    found = (tensor for tensor in model.graph.initializer if tensor.data_type in FLOATS and len(tensor.dims) > 1)
    return {tensor.name: _n_elements(tensor) for tensor in found}


def kept_wide(model: ModelProto, before: dict[str, int], component: str) -> list[str]:
    """One sentence where weights that could have been quantized were not; none where all were."""
    kept = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in before}
    wide = [tensor for tensor in kept.values() if tensor.data_type in FLOATS]
    if not wide:
        return []
    largest = max(wide, key=_n_elements)
    share = sum(_n_elements(tensor) for tensor in wide) / sum(before.values())
    kind = FLOATS[largest.data_type]
    counted = f"{len(wide)} of {len(before)} weights ({share:.1%} of the numbers)"
    return [f"{component}: {counted} stay {kind}, the largest is {largest.name}"]


def _n_elements(tensor: TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count
