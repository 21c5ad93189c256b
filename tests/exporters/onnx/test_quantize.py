"""Quantization of a small graph that has every hard spot, and of real ones (slow)."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mpa_edge.config.library import load_scheme
from mpa_edge.config.scheme import Scheme
from mpa_edge.errors import MpaError
from mpa_edge.exporters.onnx import files
from mpa_edge.exporters.onnx.quantize import quantize_component
from mpa_edge.runs.isolation import run_isolated
from tests.vlm.exported import onnx_folder

HIDDEN, WIDE, ROWS = 64, 96, 40
SCHEME = load_scheme("onnx-q4")
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
# largest error against the largest output of fp32
ERROR = {"fp32": 1e-6, "fp16": 0.003, "int8": 0.03, "q8": 0.02, "q4": 0.2, "q4f16": 0.2, "q2": 2.0}


def weights() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    shapes = {"gemm": (WIDE, HIDDEN), "bias": (WIDE,), "scale": (WIDE,), "angles": (WIDE,), "matmul": (WIDE, HIDDEN)}
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**made, "angles": np.linspace(0, 1, WIDE, dtype=np.float32), "epsilon": np.float32([1e-6])}


def block(path: Path) -> Path:
    """Gemm, RMSNorm, a rotation by position, MatMul: x (n, 64), positions (n,) -> y (n, 64)."""
    axes = numpy_helper.from_array(np.array([-1]), "axes")
    nodes = [
        helper.make_node("Gemm", ["x", "gemm", "bias"], ["h"], transB=1),
        helper.make_node("Constant", [], ["two"], value=helper.make_tensor("", FLOAT, [], [2.0])),
        helper.make_node("Pow", ["h", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["mean"]),
        helper.make_node("Add", ["mean", "epsilon"], ["above_zero"]),
        helper.make_node("Sqrt", ["above_zero"], ["root"]),
        helper.make_node("Div", ["h", "root"], ["normed"]),
        helper.make_node("Mul", ["normed", "scale"], ["scaled"]),
        helper.make_node("Cast", ["positions"], ["place"], to=FLOAT),
        helper.make_node("Unsqueeze", ["place", "axes"], ["column"]),
        helper.make_node("Mul", ["column", "angles"], ["angle"]),
        helper.make_node("Cos", ["angle"], ["cosine"]),
        helper.make_node("Mul", ["scaled", "cosine"], ["turned"]),
        helper.make_node("MatMul", ["turned", "matmul"], ["y"]),
    ]
    inputs = [("x", FLOAT, ["n", HIDDEN]), ("positions", INT, ["n"])]
    return written(path, nodes, inputs, [("y", FLOAT, ["n", HIDDEN])], {**weights(), "axes": axes})


def table(path: Path) -> Path:
    """A look-up: input_ids (n, s) -> (n, s, 64)."""
    rows = np.random.default_rng(1).standard_normal((ROWS, HIDDEN)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["rows", "input_ids"], ["inputs_embeds"])]
    outputs = [("inputs_embeds", FLOAT, ["n", "s", HIDDEN])]
    return written(path, nodes, [("input_ids", INT, ["n", "s"])], outputs, {"rows": rows})


def written(path: Path, nodes: list, inputs: list, outputs: list, arrays: dict) -> Path:
    tensors = [a if isinstance(a, TensorProto) else numpy_helper.from_array(a, n) for n, a in arrays.items()]
    ins, outs = ([helper.make_tensor_value_info(*each) for each in group] for group in (inputs, outputs))
    model = helper.make_model(
        helper.make_graph(nodes, "g", ins, outs, tensors), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    model = onnx.shape_inference.infer_shapes(model)
    # as torch's exporter does: a note of type on the weights, too
    model.graph.value_info.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors)
    onnx.save(model, path)
    return path


def run(path: Path, **feeds: NDArray) -> NDArray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def example(scale: float = 1.0, first: int = 0) -> dict[str, NDArray]:
    x = np.random.default_rng(2).standard_normal((5, HIDDEN)).astype(np.float32)
    return {"x": scale * x, "positions": np.arange(first, first + 5)}


def stored(path: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {t.name: (t.data_type, tuple(t.dims)) for t in onnx.load(path).graph.initializer}


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture
def fp32(tmp_path: Path) -> Path:
    return block(tmp_path / "fp32.onnx")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.onnx"


@pytest.mark.parametrize("precision", ERROR)
def test_the_same_numbers_within_the_precision(fp32: Path, out: Path, precision: str) -> None:
    notes = quantize_component(fp32, out, "vision", precision, SCHEME)
    expected, found = run(fp32, **example()), run(out, **example())
    assert np.abs(found - expected).max() / np.abs(expected).max() < ERROR[precision]
    assert notes == []


def products(folder: Path) -> Path:
    """Two products with one input, one of them an output: x (n, 64) -> y (n, 96)."""
    rng = np.random.default_rng(3)
    arrays = {name: rng.standard_normal((HIDDEN, WIDE)).astype(np.float32) for name in ("first", "second")}
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], "first"),
        helper.make_node("MatMul", ["x", "second"], ["b"], "second"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    io = ([("x", FLOAT, ["n", HIDDEN])], [("y", FLOAT, ["n", WIDE])])
    return written(folder / "products.onnx", nodes, *io, arrays)


@pytest.mark.parametrize("precision", ["int8", "q8"])
def test_one_loud_token_does_not_drown_the_others(tmp_path: Path, out: Path, precision: str) -> None:
    # a trained language model's first token: a few values thousands of times larger than any other
    path = products(tmp_path)
    x = np.random.default_rng(4).standard_normal((6, HIDDEN)).astype(np.float32)
    x[0, :3] = 3000.0
    x[1] = 0.0
    quantize_component(path, out, "vision", precision, SCHEME)
    expected, found = run(path, x=x), run(out, x=x)
    off = np.abs(found - expected).max(-1) / np.maximum(np.abs(expected).max(-1), 1.0)
    assert off.max() < ERROR["int8"]
    assert not found[1].any()


def test_int8_needs_no_vnni(tmp_path: Path, out: Path) -> None:
    # without it, x86 adds two products of uint8 and int8 in 16 bits
    quantize_component(products(tmp_path), out, "vision", "int8", SCHEME)
    weights = [numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer if t.data_type == TensorProto.INT8]
    assert [w.shape for w in weights if w.ndim == 2] == [(HIDDEN, WIDE)] * 2
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) * 255 * 2 <= np.iinfo(np.int16).max


def test_fewer_bits_are_worse() -> None:
    assert ERROR["fp16"] < ERROR["int8"] < ERROR["q4"] < ERROR["q2"]


def test_two_bits_are_found_out_by_the_bound_of_four(fp32: Path, out: Path) -> None:
    quantize_component(fp32, out, "vision", "q2", SCHEME)
    expected, found = run(fp32, **example()), run(out, **example())
    assert np.abs(found - expected).max() / np.abs(expected).max() > ERROR["q4"]


@pytest.mark.parametrize("precision", ["int8", "q8", "q4", "q4f16", "q2"])
def test_no_weight_of_a_gemm_stays_wide(fp32: Path, out: Path, precision: str) -> None:
    quantize_component(fp32, out, "vision", precision, SCHEME)
    wide = [name for name in ("gemm", "matmul") if name in stored(out)]
    assert wide == []
    assert "Gemm" not in operators(out)


def test_what_stays_wide_is_told(tmp_path: Path, out: Path) -> None:
    kernel = np.ones((8, 3, 4, 4), np.float32)
    nodes = [
        helper.make_node("Conv", ["pixels", "kernel"], ["patches"], strides=[4, 4]),
        helper.make_node("Flatten", ["patches"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matmul"], ["y"]),
    ]
    pixels = [("pixels", FLOAT, ["n", 3, 8, 8])]
    arrays = {"kernel": kernel, "matmul": np.ones((32, HIDDEN), np.float32)}
    path = written(tmp_path / "conv.onnx", nodes, pixels, [("y", FLOAT, ["n", HIDDEN])], arrays)
    assert quantize_component(path, out, "vision", "int8", SCHEME) == [
        "vision: 1 of 2 weights (15.8% of the parameters) stay fp32, the largest is kernel"
    ]


@pytest.mark.parametrize("precision", ["fp16", "q4f16"])
def test_a_square_in_16_bits_does_not_overflow(fp32: Path, out: Path, precision: str) -> None:
    quantize_component(fp32, out, "vision", precision, SCHEME)
    loud = example(scale=100.0)
    assert np.square(loud["x"]).max() > np.finfo(np.float16).max / 10
    expected, found = run(fp32, **loud), run(out, **loud)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() / np.abs(expected).max() < ERROR[precision]


def test_angles_of_far_positions_are_not_rounded(fp32: Path, out: Path) -> None:
    quantize_component(fp32, out, "vision", "fp16", SCHEME)
    far = example(first=3001)
    assert float(np.float16(3001)) != 3001.0
    assert np.abs(run(out, **far) - run(fp32, **far)).max() / np.abs(run(fp32, **far)).max() < ERROR["fp16"]
    narrow = onnx.load(out)
    angle = next(node for node in narrow.graph.node if node.op_type == "Cos").input[0]
    makers = {name: node.op_type for node in narrow.graph.node for name in node.output}
    assert makers[angle] == "Mul", "a Cast between the angle and its cosine would have rounded it"


@pytest.mark.slow
def test_a_recurrent_state_stays_fp32_in_16_bits(out: Path) -> None:
    fp32 = onnx_folder("qwen3_5") / "onnx" / "decoder_model_merged.onnx"
    quantize_component(fp32, out, "decoder", "fp16", SCHEME)
    graph = onnx.load(out, load_external_data=False).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    for name in ("past_recurrent.0", "present_recurrent.2", "inputs_embeds", "logits"):
        assert kinds[name] == TensorProto.FLOAT
    for name in ("past_conv.0", "present_conv.2", "past_key_values.1.key", "present.1.value"):
        assert kinds[name] == TensorProto.FLOAT16


def test_a_decoder_takes_fp32_embeddings_and_an_fp16_cache(tmp_path: Path, out: Path) -> None:
    shape = ["n", HIDDEN]
    nodes = [
        helper.make_node("MatMul", ["inputs_embeds", "matmul"], ["logits"]),
        helper.make_node("Add", ["past_key_values.0.key", "inputs_embeds"], ["present.0.key"]),
    ]
    inputs = [("inputs_embeds", FLOAT, shape), ("past_key_values.0.key", FLOAT, shape)]
    outputs = [("logits", FLOAT, shape), ("present.0.key", FLOAT, shape)]
    arrays = {"matmul": np.eye(HIDDEN, dtype=np.float32)}
    quantize_component(written(tmp_path / "d.onnx", nodes, inputs, outputs, arrays), out, "decoder", "fp16", SCHEME)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    kinds = {value.name: value.type for value in (*session.get_inputs(), *session.get_outputs())}
    assert kinds == {
        "inputs_embeds": "tensor(float)",
        "past_key_values.0.key": "tensor(float16)",
        "logits": "tensor(float)",
        "present.0.key": "tensor(float16)",
    }


@pytest.mark.parametrize(
    ("precision", "operator", "kind", "error"),
    [
        ("fp16", "Gather", TensorProto.FLOAT16, 0.001),
        ("int8", "DequantizeLinear", TensorProto.UINT8, 0.01),
        ("qdq8", "DequantizeLinear", TensorProto.UINT8, 0.01),
        ("q2", "DequantizeLinear", TensorProto.UINT8, 0.01),
        ("q4", "GatherBlockQuantized", TensorProto.UINT4, 0.1),
        ("q4f16", "GatherBlockQuantized", TensorProto.UINT4, 0.1),
    ],
)
def test_an_embedding_table(tmp_path: Path, out: Path, precision: str, operator: str, kind: int, error: float) -> None:
    path = table(tmp_path / "table.onnx")
    assert quantize_component(path, out, "embed", precision, SCHEME) == []
    assert operator in operators(out)
    # looked up first, widened after: the table itself is never unpacked
    assert kind in {stored_kind for stored_kind, shape in stored(out).values() if shape == (ROWS, HIDDEN)}
    ids = np.array([[0, 1, ROWS - 1]])
    expected, found = run(path, input_ids=ids), run(out, input_ids=ids)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() / np.abs(expected).max() < error


def test_large_weights_go_beside_the_graph(fp32: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "EMBEDDED_BYTES", 1000)
    for precision in ("int8", "q4", "fp16"):
        quantize_component(fp32, out, "vision", precision, SCHEME)
        graph = onnx.load(out, load_external_data=False).graph
        places = {entry.value for t in graph.initializer for entry in t.external_data if entry.key == "location"}
        assert places == {"out.onnx_data"}
        assert np.allclose(
            run(out, **example()), run(fp32, **example()), atol=0.2 * np.abs(run(fp32, **example())).max()
        )
        assert sorted(path.name for path in out.parent.iterdir()) == ["fp32.onnx", "out.onnx", "out.onnx_data"]
    # and such a graph can be read again
    quantize_component(out, out.with_name("again.onnx"), "vision", "fp32", SCHEME)
    assert np.array_equal(run(out, **example()), run(out.with_name("again.onnx"), **example()))


@pytest.mark.parametrize("precision", ["q8", "q4", "int8"])
def test_weights_beside_the_graph_give_the_same_numbers(
    fp32: Path, out: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    quantize_component(fp32, out, "vision", precision, SCHEME)
    large = out.with_name("large.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(files, "EMBEDDED_BYTES", 1000)
        quantize_component(fp32, large, "vision", "fp32", SCHEME)
    before = large.with_name("large.onnx_data").read_bytes()
    again = out.with_name("again.onnx")
    quantize_component(large, again, "vision", precision, SCHEME)
    assert np.array_equal(run(again, **example()), run(out, **example()))
    assert abs(again.stat().st_size - out.stat().st_size) < 1000
    assert large.with_name("large.onnx_data").read_bytes() == before


def test_nothing_has_the_final_name_when_it_fails(fp32: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        assert path.is_file()
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(files, "check", fail)
    with pytest.raises(RuntimeError, match="no such kernel"):
        quantize_component(fp32, out, "vision", "int8", SCHEME)
    assert [path.name for path in out.parent.iterdir()] == ["fp32.onnx"]


def test_what_a_killed_process_left_goes(fp32: Path, out: Path) -> None:
    left = out.parent / ".out.onnx.work"
    left.mkdir()
    (left / "source.onnx").write_bytes(b"half")
    quantize_component(fp32, out, "vision", "int8", SCHEME)
    assert sorted(path.name for path in out.parent.iterdir()) == ["fp32.onnx", "out.onnx"]


def test_static_ranges_need_calibration(fp32: Path, out: Path) -> None:
    with pytest.raises(MpaError, match=r"qdq8 needs calibration data: export a run"):
        quantize_component(fp32, out, "vision", "qdq8", SCHEME)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
@pytest.mark.parametrize(("precision", "error"), [("qdq8", 0.05), ("qdq16", 0.03)])
def test_static_ranges_come_from_the_calibration(
    fp32: Path, out: Path, tmp_path: Path, precision: str, error: float, method: str
) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    for i in range(3):
        np.savez(folder / f"vision-{i:05d}.npz", **example(first=i))
    quantize_component(fp32, out, "vision", precision, static(method), folder)
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(operators(out))
    expected, found = run(fp32, **example()), run(out, **example())
    assert np.abs(found - expected).max() / np.abs(expected).max() < (error if method == "minmax" else 0.3)
    # an image ten times as bright as any in the calibration is cut off: the ranges are fixed
    loud = example(scale=10.0)
    assert np.abs(run(out, **loud) - run(fp32, **loud)).max() / np.abs(run(fp32, **loud)).max() > error


def static(method: str) -> Scheme:
    scheme = load_scheme("onnx-qdq")
    assert scheme.calibration is not None
    return scheme.model_copy(update={"calibration": scheme.calibration.model_copy(update={"method": method})})


def test_logging_is_left_as_it_was(fp32: Path, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.root.manager.disable)
    for precision in ("int8", "q4"):
        quantize_component(fp32, out, "vision", precision, SCHEME)
    assert (root.handlers[:], root.level, logging.root.manager.disable) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_matrix_that_is_done_takes_no_memory(tmp_path: Path) -> None:
    def peak_bytes(n: int) -> int:
        matrix = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
        nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"n{i}") for i in range(n)]
        ends = [[(name, FLOAT, ["n", 1024])] for name in ("x0", f"x{n}")]
        path = written(tmp_path / f"{n}.onnx", nodes, *ends, {f"w{i}": matrix for i in range(n)})
        onnx.save_model(onnx.load(path), path, save_as_external_data=True, location=f"{path.name}_data")
        out = tmp_path / f"{n}.out.onnx"
        return run_isolated(quantize_component, path, out, "decoder", "q2", SCHEME, threads=1)[1]

    few, many = 2, 50
    assert peak_bytes(many) - peak_bytes(few) < (many - few) * 1024**2 * 4 / 2
