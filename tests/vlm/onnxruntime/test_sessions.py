"""A graph's file cannot reach outside its folder, and what goes wrong is one line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from mpa_edge.errors import MpaError
from mpa_edge.vlm.onnxruntime.sessions import Graph, VisionEncoder, has_dynamic_ranges

N = 1024
VALUES = np.arange(N, dtype=np.float32)
# onnxruntime 1.31's errors for weights at an absolute path, above the folder, or behind a link out of it
NOT_INSIDE = re.compile(
    r"escapes model directory|absolute path|symbolic link|outside (the directory|model)", re.IGNORECASE
)


def outside(name: str, location: str) -> TensorProto:
    """A tensor whose values lie in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[N], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": str(4 * N)}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def value(name: str, kind: int = TensorProto.FLOAT, shape: tuple[int, ...] = (N,)):
    return helper.make_tensor_value_info(name, kind, shape)


def as_initializer(location: str):
    add = helper.make_node("Add", ["x", "w"], ["y"])
    return helper.make_graph([add], "g", [value("x")], [value("y")], [outside("w", location)])


def as_constant(location: str):
    nodes = [helper.make_node("Constant", [], ["w"], value=outside("w", location))]
    return helper.make_graph([*nodes, helper.make_node("Add", ["x", "w"], ["y"])], "g", [value("x")], [value("y")])


def in_a_branch(location: str):
    add = helper.make_node("Add", ["x", "w"], ["z"])
    branch = helper.make_graph([add], "b", [], [value("z")], [outside("w", location)])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    inputs = [value("x"), value("c", TensorProto.BOOL, ())]
    return helper.make_graph([choice], "g", inputs, [value("y")])


def write(folder: Path, graph) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with weights of its own, secrets beside it, and ways to get there."""
    inside = tmp_path / "export"
    (inside / "deeper").mkdir(parents=True)
    for path in (tmp_path / "secret", inside / "own", inside / "deeper" / "own"):
        path.write_bytes(VALUES.tobytes())
    os.symlink(tmp_path / "secret", inside / "link")
    os.symlink(tmp_path, inside / "way")
    return inside


@pytest.mark.parametrize("place", [as_initializer, as_constant, in_a_branch])
@pytest.mark.parametrize("location", ["own", "deeper/own"])
def test_weights_beside_a_graph_are_read(folder: Path, place, location: str) -> None:
    graph = Graph(write(folder, place(location)), 1)
    feeds = {"x": np.ones(N, np.float32), "c": np.array(True)}
    (found,) = graph.run({name: feeds[name] for name in graph.inputs})
    np.testing.assert_array_equal(found, VALUES + 1)


@pytest.mark.parametrize("place", [as_initializer, as_constant, in_a_branch])
@pytest.mark.parametrize("location", ["{}/secret", "../secret", "deeper/../../secret", "link", "way/secret"])
def test_weights_outside_the_folder_are_refused(folder: Path, place, location: str) -> None:
    path = write(folder, place(location.format(folder.parent)))
    with pytest.raises(MpaError) as caught:
        Graph(path, 1)
    assert str(caught.value).startswith(f"cannot load {path} (")
    assert NOT_INSIDE.search(str(caught.value.__cause__))


@pytest.mark.parametrize("location", ["", "missing", "*/_ORT_MEM_ADDR_/*"])
def test_weights_that_are_not_there_are_one_line(folder: Path, location: str) -> None:
    with pytest.raises(MpaError, match=r"cannot load .*: copy the whole folder, or rerun mpa-edge export$") as caught:
        Graph(write(folder, as_initializer(location)), 1)
    assert "\n" not in str(caught.value)


def test_inputs_are_cast_to_the_graphs_types(tmp_path: Path) -> None:
    half = TensorProto.FLOAT16
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    graph = helper.make_graph(nodes, "g", [value("x", half, (3,))], [value("y", half, (3,))])
    (found,) = Graph(write(tmp_path, graph), 1).run({"x": np.array([1, 2, 3], np.float64)})
    assert (found.dtype, found.tolist()) == (np.float16, [2, 4, 6])


def encoder(folder: Path, *names: str) -> VisionEncoder:
    """Gives its pixels back, flat: (1, 2, 3) -> (2, 3); other inputs go nowhere."""
    nodes = [helper.make_node("Identity", ["pixel_values"], ["image_features"])]
    inputs = [value("pixel_values", shape=(1, 2, 3)), *(value(name, TensorProto.INT64, (1, 3)) for name in names)]
    return VisionEncoder(
        write(folder, helper.make_graph(nodes, "g", inputs, [value("image_features", shape=(1, 2, 3))])), 1
    )


def test_features_are_one_row_an_image_token(tmp_path: Path) -> None:
    pixels = np.arange(6.0).reshape(1, 2, 3)
    grid = np.ones((1, 3), np.int64)
    for given in ({"grid_thw": grid}, {"image_grid_thw": grid}):
        features = encoder(tmp_path, "grid_thw").encode({"pixel_values": pixels, **given})
        assert features.dtype == np.float32
        assert features.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_an_input_that_nobody_makes_is_named(tmp_path: Path) -> None:
    with pytest.raises(MpaError, match="wants 'depth', which the image processor does not make: rerun mpa-edge export"):
        encoder(tmp_path, "depth").encode({"pixel_values": np.zeros((1, 2, 3))})


def test_a_run_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MpaError, match=r"model.onnx failed \(.*\): free memory, or rerun mpa-edge export") as caught:
        encoder(tmp_path).encode({"pixel_values": np.zeros((1, 2, 4))})
    assert "\n" not in str(caught.value)


def test_dynamic_ranges_are_found(tmp_path: Path) -> None:
    plain = [helper.make_node("Add", ["x", "x"], ["y"])]
    dynamic = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    found = [
        has_dynamic_ranges(write(tmp_path, helper.make_graph(nodes, "g", [value("x")], [value("y")])))
        for nodes in (plain, dynamic)
    ]
    assert found == [False, True]
