"""Weighted rounding to 4 bits: what is stored is what the runtime computes with, and what matters is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from mpa_edge.config.library import load_scheme
from mpa_edge.exporters.onnx.blocks import rounded
from mpa_edge.exporters.onnx.quantize import quantize_component
from tests.exporters.onnx.test_quantize import FLOAT, helper, run, written

INPUTS, OUTPUTS = 96, 64


def layer(folder: Path) -> Path:
    """v_proj and up_proj of one layer: x (n, 96) -> v (n, 64), up (n, 64)."""
    rng = np.random.default_rng(0)
    names = ("language.layers.0.self_attn.v_proj.weight", "language.layers.0.mlp.up_proj.weight")
    arrays = {name: rng.standard_normal((INPUTS, OUTPUTS)).astype(np.float32) for name in names}
    nodes = [helper.make_node("MatMul", ["x", name], [out], out) for name, out in zip(names, ("v", "up"), strict=True)]
    outputs = [("up", FLOAT, ["n", OUTPUTS]), ("v", FLOAT, ["n", OUTPUTS])]
    return written(folder / "layer.onnx", nodes, [("x", FLOAT, ["n", INPUTS])], outputs, arrays)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Some channels far louder than the rest, as in a trained model, and their mean squares."""
    loud = np.where(np.arange(INPUTS) % 16 == 0, 30.0, 1.0)
    x = (np.random.default_rng(1).standard_normal((200, INPUTS)) * loud).astype(np.float32)
    return x, np.square(x).mean(0)


def error(folder: Path, importance: Path | None) -> float:
    path = layer(folder)
    scheme = load_scheme("onnx-q4")
    quantize_component(path, folder / "out.onnx", "decoder", "q4", scheme, None, importance)
    x, _ = inputs()
    expected = run(path, x=x)
    return float(np.square(run(folder / "out.onnx", x=x) - expected).mean() / np.square(expected).mean())


def test_importance_halves_the_error_of_an_output(tmp_path: Path) -> None:
    np.savez(tmp_path / "importance.npz", **{"layers.0.mlp.up_proj": inputs()[1]})
    assert error(tmp_path, tmp_path / "importance.npz") < 0.5 * error(tmp_path, None)


def test_named_matrices_keep_eight_bits(tmp_path: Path) -> None:
    quantize_component(layer(tmp_path), tmp_path / "out.onnx", "decoder", "q4", load_scheme("onnx-q4"))
    bits = {
        node.output[0]: onnx.helper.get_node_attr_value(node, "bits")
        for node in onnx.load(tmp_path / "out.onnx").graph.node
        if node.op_type == "MatMulNBits"
    }
    assert bits == {"v": 8, "up": 4}


@pytest.mark.parametrize("shape", [(40, 5, 32), (40, 1, 16)])
def test_no_weighted_error_is_above_that_of_plain_rounding(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    weights, importance = (
        rng.standard_normal(shape).astype(np.float32),
        np.square(rng.standard_cauchy(shape)).astype(np.float32),
    )
    low, high = np.minimum(weights.min(-1, keepdims=True), 0), np.maximum(weights.max(-1, keepdims=True), 0)
    step = (high - low) / 15
    zero = np.rint(-low / step)
    plain = step * (np.clip(np.rint(weights / step) + zero, 0, 15) - zero)
    numbers, scales, zeros = rounded(weights, importance)
    found = scales[..., None] * (numbers.astype(np.float32) - zeros[..., None])
    losses = [(importance * (one - weights) ** 2).sum(-1) for one in (found, plain)]
    assert (losses[0] <= 1.001 * losses[1]).all()
    assert np.median(losses[0] / losses[1]) < 0.5


def test_blocks_of_zeros_and_of_one_number(tmp_path: Path) -> None:
    weights = np.zeros((2, 1, 32), np.float32)
    weights[1] = -0.7
    numbers, scales, zeros = rounded(weights, np.ones_like(weights))
    found = scales[..., None] * (numbers.astype(np.float32) - zeros[..., None])
    assert np.allclose(found, weights, atol=1e-6)


def test_rows_that_do_not_fill_their_blocks(tmp_path: Path) -> None:
    # 40 inputs: two blocks, the second half empty
    arrays = {"w": np.random.default_rng(3).standard_normal((40, 24)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "y")]
    path = written(tmp_path / "a.onnx", nodes, [("x", FLOAT, ["n", 40])], [("y", FLOAT, ["n", 24])], arrays)
    quantize_component(path, tmp_path / "b.onnx", "decoder", "q4", load_scheme("onnx-q4"))
    x = np.random.default_rng(4).standard_normal((7, 40)).astype(np.float32)
    off = np.abs(run(tmp_path / "b.onnx", x=x) - run(path, x=x)).max() / np.abs(run(path, x=x)).max()
    assert off < 0.2
