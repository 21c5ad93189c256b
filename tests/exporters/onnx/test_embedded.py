"""Weights copied into a graph's own file: protobuf's reader must find the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mpa_edge.exporters.onnx.files import embed_weights

LARGE = np.random.default_rng(0).standard_normal((700, 300)).astype(np.float32)
SMALL = np.array([3, -1], np.int64)


def saved(folder: Path) -> Path:
    """A graph whose large weight lies in data.bin, behind 4096 other bytes."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "large"], ["y"]), helper.make_node("Reshape", ["y", "small"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 700])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [3, "m"])],
        [numpy_helper.from_array(SMALL, "small"), numpy_helper.from_array(LARGE, "large")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data = graph.initializer[1].raw_data
    (folder / "data.bin").write_bytes(bytes(4096) + data)
    onnx.external_data_helper.set_external_data(model.graph.initializer[1], "data.bin", 4096, len(data))
    model.graph.initializer[1].ClearField("raw_data")
    (folder / "graph.onnx").write_bytes(model.SerializeToString())
    return folder / "graph.onnx"


def test_the_file_holds_the_same_model(tmp_path: Path) -> None:
    apart = saved(tmp_path)
    embed_weights(apart, tmp_path / "whole.onnx")
    expected = onnx.load(apart)
    (tmp_path / "data.bin").unlink()
    found = onnx.load(tmp_path / "whole.onnx")
    onnx.checker.check_model(found, full_check=True)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    assert tensors.keys() == {"small", "large"}
    assert np.array_equal(tensors["large"], LARGE)
    assert np.array_equal(tensors["small"], SMALL)
    assert not [tensor for tensor in found.graph.initializer if tensor.external_data]
    for model in (found, expected):
        del model.graph.initializer[:]
    assert found == expected


def test_a_weight_that_is_cut_off_is_no_weight(tmp_path: Path) -> None:
    apart = saved(tmp_path)
    data = (tmp_path / "data.bin").read_bytes()
    (tmp_path / "data.bin").write_bytes(data[:-1])
    with pytest.raises(EOFError, match="ends before its last tensor"):
        embed_weights(apart, tmp_path / "whole.onnx")
