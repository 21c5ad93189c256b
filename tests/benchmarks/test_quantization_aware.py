"""What leveling against quantized weights trains on is what ONNX Runtime reads back from the scheme onnx-q2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
N_INPUTS, N_OUTPUTS = 96, 40


def test_rounding_is_that_of_the_scheme() -> None:
    import onnxruntime
    import torch
    from onnx import TensorProto, helper, numpy_helper
    from quantization_aware import rounded

    from mpa_edge.exporters.onnx.quantize import _blockwise

    weight = np.random.default_rng(0).normal(size=(N_INPUTS, N_OUTPUTS)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", N_INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", N_OUTPUTS])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    quantized = _blockwise(model, Path(), "decoder", 2, 32)
    for node in quantized.graph.node:  # without int8 activations, a unit vector reads a row of the weights
        for attribute in node.attribute:
            attribute.i = 0 if attribute.name == "accuracy_level" else attribute.i
    session = onnxruntime.InferenceSession(quantized.SerializeToString(), providers=["CPUExecutionProvider"])
    (read,) = session.run(None, {"x": np.eye(N_INPUTS, dtype=np.float32)})
    ours = rounded(torch.from_numpy(weight.T.copy()), 2).numpy().T
    np.testing.assert_allclose(ours, read, atol=1e-6)
    assert np.abs(ours - weight).max() > 0.5


def test_a_layer_computes_what_its_merged_and_rounded_weights_do() -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from quantization_aware import aware, rounded

    torch.manual_seed(0)
    model = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(N_INPUTS, N_OUTPUTS)),
        LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False),
    )
    layer, inputs = model.base_model.model[0], torch.randn(3, N_INPUTS)
    found = aware(layer, 3, inputs)
    found.sum().backward()
    assert layer.lora_A["default"].weight.grad.abs().max() > 0
    merged = model.merge_and_unload()[0]
    wanted = torch.nn.functional.linear(inputs, rounded(merged.weight, 3), merged.bias)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
