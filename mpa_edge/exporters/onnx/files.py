"""ONNX graphs on disk: read for a quantizer, checked, and written so that no half file has a final name."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnxruntime.quantization.onnx_model import ONNXModel

from mpa_edge.runs.files import disk_errors, fsync_folder

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


def prepare(path: Path, folder: Path) -> Path:
    """A copy of a graph in `folder` as quantizers want it; returns its path.

    Every Gemm is MatMul and Add, no notes of type stand on weights (they would go stale), and the weights lie in a file
    of their own: shape inference then does not copy them, and whoever needs them reads them once.
    """
    target = folder / "source.onnx"
    onnx.save_model(_prepared(path), target, save_as_external_data=True, location=f"{target.name}_data")
    return target


def _prepared(path: Path) -> ModelProto:
    model = ONNXModel(onnx.load(path))
    model.replace_gemm_with_matmul()
    graph = model.model.graph
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in weights]
    kept += _between(model.model)
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return model.model


def is_large(prepared: Path) -> bool:
    """Whether the weights of a prepared graph are more than one protobuf holds."""
    data = prepared.with_name(f"{prepared.name}_data")
    return data.is_file() and data.stat().st_size > EMBEDDED_BYTES


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


def publish(made: Path, out: Path) -> None:
    """Check and load a graph, then give it its final name: weights first, the graph that names them last."""
    check(made)
    for path in sorted(made.parent.glob(f"{made.name}*"), reverse=True):
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


def kept_wide(model: ModelProto, source: Path, component: str) -> list[str]:
    """One sentence where weights of `source` that could have been quantized were not; none where all were."""
    before = {tensor.name: _n_elements(tensor) for tensor in _matrices(onnx.load(source, load_external_data=False))}
    wide = [tensor for tensor in _matrices(model) if tensor.name in before]
    if not wide:
        return []
    largest = max(wide, key=_n_elements)
    share = sum(map(_n_elements, wide)) / sum(before.values())
    counted = f"{len(wide)} of {len(before)} weights ({share:.1%} of the numbers)"
    return [f"{component}: {counted} stay {FLOATS[largest.data_type]}, the largest is {largest.name}"]


def _matrices(model: ModelProto) -> list[TensorProto]:
    """Weights of two or more axes in floating point."""
    return [tensor for tensor in model.graph.initializer if tensor.data_type in FLOATS and len(tensor.dims) > 1]


def _n_elements(tensor: TensorProto) -> int:
    return math.prod(tensor.dims)
