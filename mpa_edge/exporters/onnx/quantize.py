"""An fp32 ONNX graph in fewer bits, by the quantizers of ONNX Runtime.

What a precision means, by component:

| Precision | MatMul weights | Embedding table | Activations |
|---|---|---|---|
| fp16 | fp16 | fp16 | fp16; norms, angles and indices in fp32 |
| int8 | 7 bits of int8, a scale a column | uint8, one scale | uint8, a scale a row, found at run time |
| q8 | 8 bits, a scale a block | uint8, one scale | fp32; int8 a row and block inside the CPU kernel |
| q4, q4f16 | 4 bits, a scale a block; some as q8 | 4 bits, a scale a block | as q8, or fp16 |
| q2 | 2 bits, a scale a block | uint8, one scale | as q4 |
| qdq8, qdq16 | int8, a scale a column | uint8, one scale | int8 or uint16, range from the calibration |

Convolutions, norms and position tables stay as they are in the integer precisions: they save few bytes and cost much
accuracy.

int8 is made for the vision encoder. A trained language model has tokens and channels a thousand times larger than the
rest: one scale for all of them (ONNX Runtime's own way) leaves nothing of the others, a scale a row leaves 95 %, blocks
leave all. With 7 bits a weight, two products fit the 16 bits in which x86 processors without VNNI add them; with 8,
they do not, and the same file would compute other numbers there.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.config.scheme import CalibrationConfig, Component, Scheme
from mpa_edge.errors import MpaError, missing_package
from mpa_edge.exporters.onnx.export import quiet

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

FULL_PRECISION_IO = {"decoder": ["inputs_embeds", "per_layer_inputs", "logits"]}
"""Inputs and outputs that stay fp32 in a 16-bit graph; all of them for a component that is not named."""
CPU_INT8 = 4
"""`accuracy_level` of MatMulNBits: activations in int8 inside the kernel, its fastest way on a CPU."""
EMBED_FALLBACK = {"q8": "int8", "q2": "int8", "qdq8": "int8", "qdq16": "int8"}
"""Precisions that a table look-up has no kernel for, and what it gets instead."""
BLOCK_BITS = {"q8": 8, "q4": 4, "q4f16": 4, "q2": 2}
"""Bits of a weight in the precisions whose weights are blocks with a scale."""
SMALLEST_ROW = 1e-20
"""What a row of zeros is divided by."""
CALIBRATION_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
"""Method of a scheme's calibration -> ONNX Runtime's name of it."""
STATIC_OPTIONS: dict[str, Any] = {
    "WeightSymmetric": True,
    "MatMulConstBOnly": True,
    "OpTypesToExcludeOutputQuantization": ["MatMul", "Conv"],
}
"""Only products with a weight become integers, and their sums stay wide."""


def quantize_component(
    fp32: Path,
    out: Path,
    component: Component,
    precision: str,
    scheme: Scheme,
    calibration: Path | None = None,
    importance: Path | None = None,
) -> list[str]:
    """Write an fp32 graph in another precision; returns one sentence where weights stayed wider.

    The result passed ONNX's checker and was loaded by ONNX Runtime. Blocks need little more memory than their result,
    the others up to three times the bytes of `fp32`: call it in a process of its own (`run_isolated`). MpaError where a
    package or the calibration is missing.

    Args:
        fp32: Graph that `export_component` wrote.
        out: The file, which gets its name when it is complete; weights above 1.9 GB go to `out`_data.
        component: vision, embed or decoder.
        precision: A name of `scheme.OnnxPrecision`.
        scheme: Its block size, 8-bit matrices and calibration method apply.
        calibration: Folder that `calibrate` wrote, for the qdq precisions.
        importance: File that `measure_importance` wrote, for 4 bits; None: all weights matter equally.
    """
    try:
        import onnxruntime  # noqa: F401

        from mpa_edge.exporters.onnx import files
    except ModuleNotFoundError as error:
        raise missing_package(str(error.name), "export") from error
    if component == "embed":
        precision = EMBED_FALLBACK.get(precision, precision)
    with files.work_folder(out) as folder, quiet():
        source = files.prepare(fp32, folder)
        model = _quantized(source, folder / "quantized.onnx", component, precision, scheme, calibration, importance)
        notes = [] if precision in ("fp32", "fp16") else files.kept_wide(model, source, component)
        files.save(model, folder / out.name)
        del model
        files.publish(folder / out.name, out)
    return notes


def _quantized(
    source: Path,
    scratch: Path,
    component: Component,
    precision: str,
    scheme: Scheme,
    calibration: Path | None,
    importance: Path | None,
) -> ModelProto:
    """The quantized graph in memory. `scratch` is a file that a quantizer may write."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from mpa_edge.exporters.onnx.blocks import layer_name
    from mpa_edge.exporters.onnx.files import is_large, read_weights
    from mpa_edge.exporters.onnx.half import to_half

    if precision in ("fp32", "fp16"):
        model = onnx.load(source)
    elif precision in BLOCK_BITS:
        bits = BLOCK_BITS[precision]
        wide = scheme.eight_bits if bits == 4 and component == "decoder" else ()
        model = onnx.load(source, load_external_data=False)  # each weight is read when its turn comes
        products = [node for node in model.graph.node if node.op_type == "MatMul"]
        kept = [node.name for node in products if layer_name(node.input[1]).rpartition(".")[2] in wide]
        model = _blockwise(model, source.parent, component, bits, scheme.block_size, importance, kept)
        if kept:
            model = _blockwise(model, source.parent, component, 8, scheme.block_size)
        read_weights(model.graph.initializer, source.parent)
    else:
        if precision == "int8":
            is_table = component == "embed"  # looked up in uint8, then scaled
            quantize_dynamic(
                source if is_table else with_unit_rows(source),
                scratch,
                weight_type=QuantType.QUInt8 if is_table else QuantType.QInt8,
                op_types_to_quantize=["Gather" if is_table else "MatMul"],
                per_channel=not is_table,
                reduce_range=not is_table,
                use_external_data_format=is_large(source),
            )
        else:
            _static(source, scratch, component, precision, scheme, calibration)
        # the quantizer is a cycle of objects that holds all weights: free it before they are read again
        gc.collect()
        model = onnx.load(scratch)
    return to_half(model, FULL_PRECISION_IO.get(component)) if precision in ("fp16", "q4f16") else model


def with_unit_rows(source: Path) -> Path:
    """A prepared graph whose attention is fused, and in which the rows of every product with a weight have a largest
    value of 1; a file beside it.

    Each row is divided by its largest value before the product, and multiplied after it. So the one scale that ONNX
    Runtime finds for all rows fits each of them, whatever is in the batch. The weights stay in the file of `source`.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    from mpa_edge.exporters.onnx.attention import fuse_attention

    model = onnx.load(source, load_external_data=False)
    fuse_attention(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    nodes: list[NodeProto] = []
    divided: set[str] = set()
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "MatMul" or node.input[1] not in weights:
            continue
        rows, product = node.input[0], node.output[0]
        if rows not in divided:
            divided.add(rows)
            nodes[-1:] = [
                helper.make_node("Abs", [rows], [f"{rows}/sizes"]),
                helper.make_node("ReduceMax", [f"{rows}/sizes", "rows/axis"], [f"{rows}/largest"]),
                helper.make_node("Max", [f"{rows}/largest", "rows/smallest"], [f"{rows}/scale"]),
                helper.make_node("Div", [rows, f"{rows}/scale"], [f"{rows}/unit"]),
                node,
            ]
        node.input[0], node.output[0] = f"{rows}/unit", f"{product}/unit"
        nodes.append(helper.make_node("Mul", [f"{product}/unit", f"{rows}/scale"], [product]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "rows/axis"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(SMALLEST_ROW, np.float32), "rows/smallest"))
    target = source.with_name("unit.onnx")
    onnx.save(model, target)
    return target


def _blockwise(
    model: ModelProto,
    folder: Path,
    component: Component,
    bits: int,
    block_size: int,
    importance: Path | None = None,
    excluded: Sequence[str] = (),
) -> ModelProto:
    """Weights as blocks of `bits`-bit numbers, each block with its scale and, at 4 bits, its zero point.

    8 bits need no zero point. 2 bits are the negative control, where it would save half of what is to be lost. Weights
    that are still in a file of `folder` are read one by one, and forgotten when they are quantized.
    """
    import numpy as np
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    from mpa_edge.exporters.onnx.blocks import WeightedQuantizer
    from mpa_edge.exporters.onnx.files import read_weights

    operator, axis = ("Gather", 1) if component == "embed" else ("MatMul", 0)
    config = DefaultWeightOnlyQuantConfig(
        block_size=block_size,
        is_symmetric=bits != 4,
        accuracy_level=CPU_INT8,
        op_types_to_quantize=(operator,),
        quant_axes=((operator, axis),),
        bits=bits,
    )
    quantizer = MatMulNBitsQuantizer(model, nodes_to_exclude=excluded, algo_config=config)
    if bits == 4:
        known = dict(np.load(importance)) if importance else {}
        quantizer.node_quantizer = WeightedQuantizer(config, known)
    one_node = quantizer.node_quantizer.quantize

    def quantize(node: NodeProto, graph_stack: list[GraphProto]) -> list[NodeProto]:
        if node.op_type != operator or node.name in excluded:
            return list(one_node(node, graph_stack))
        # in a graph of their own: protobuf frees what a message held only with the whole message
        whole, own = graph_stack[-1].initializer, onnx.GraphProto()
        own.initializer.extend(tensor for tensor in whole if tensor.name in node.input)
        n_read = len(own.initializer)
        read_weights(own.initializer, folder)
        made = list(one_node(node, [*graph_stack, own]))
        whole.extend(own.initializer[n_read:])
        return made

    quantizer.node_quantizer.quantize = quantize
    quantizer.process()
    return quantizer.model.model


def _static(
    source: Path, target: Path, component: Component, precision: str, scheme: Scheme, calibration: Path | None
) -> None:
    """Weights in int8 and the inputs of every MatMul and Conv in fixed ranges, as QuantizeLinear-DequantizeLinear.

    A range that is symmetric around zero (qdq8) is what TensorRT takes.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    from mpa_edge.exporters.onnx.calibrate import Feeds
    from mpa_edge.exporters.onnx.files import is_large

    if calibration is None:
        raise MpaError(f"{precision} needs calibration data: export a run, or choose a scheme without qdq")
    method = (scheme.calibration or CalibrationConfig()).method
    quantize_static(
        source,
        target,
        Feeds(calibration, component),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Conv"],
        per_channel=True,
        activation_type=QuantType.QInt8 if precision == "qdq8" else QuantType.QUInt16,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[CALIBRATION_METHODS[method]],
        use_external_data_format=is_large(source),
        extra_options={"ActivationSymmetric": precision == "qdq8", **STATIC_OPTIONS},
    )
