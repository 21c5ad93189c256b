"""Exports with a fault for an accelerator."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from tests.vlm import exported


def with_operator(folder: Path, operator: str, n: int) -> Path:
    """The student, with `n` numbers through an operator of com.microsoft in its vision encoder; they change no answer.

    OpenVINO leaves FastGelu to the CPU.
    """
    Path(shutil.copytree(exported.onnx_folder("student"), folder))
    (path,) = folder.rglob("vision_encoder.onnx")
    model = onnx.load(path)
    graph, output = model.graph, model.graph.output[0].name
    for node in graph.node:
        node.output[:] = ["features" if name == output else name for name in node.output]
    graph.initializer.append(helper.make_tensor("wide_shape", TensorProto.INT64, [1], [n]))
    graph.initializer.append(helper.make_tensor("nothing", TensorProto.FLOAT, [], [0.0]))
    graph.node.extend(
        [
            helper.make_node("ReduceMean", ["pixel_values"], ["mean"], keepdims=0),
            helper.make_node("Expand", ["mean", "wide_shape"], ["wide"]),
            helper.make_node(operator, ["wide"], ["odd"], domain="com.microsoft"),
            helper.make_node("ReduceMean", ["odd"], ["odd_mean"], keepdims=0),
            helper.make_node("Mul", ["odd_mean", "nothing"], ["zero"]),
            helper.make_node("Add", ["features", "zero"], [output]),
        ]
    )
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for beside in path.parent.glob(f"{path.name}_data*"):
        beside.unlink()
    onnx.save(model, path)
    return folder
