"""An fp32 ONNX graph in fewer bits, by the quantizers of ONNX Runtime.

What a precision means, by component:

| Precision | MatMul weights | Embedding table | Activations |
|---|---|---|---|
| fp16 | fp16 | fp16 | fp16; norms, angles and indices in fp32 |
| int8, q8 | int8, a scale a column | uint8, one scale | uint8, range found at run time |
| q4, q4f16 | 4 bits, a scale a block | 4 bits, a scale a block | fp32 or fp16; int8 inside the CPU kernel |
| q2 | 2 bits, a scale a block | uint8, one scale | as q4 |
| qdq8, qdq16 | int8, a scale a column | uint8, one scale | int8 or uint16, range from the calibration |

Convolutions, norms and position tables stay as they are in the integer precisions: few bytes, much harm.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.config.scheme import CalibrationConfig, Component, Scheme
from mpa_edge.errors import MpaError, missing_package

if TYPE_CHECKING:
    from onnx import ModelProto

FULL_PRECISION_IO = {"decoder": ["inputs_embeds", "logits"]}
"""Inputs and outputs that stay fp32 in a 16-bit graph; all of them where a component is not named."""
CPU_INT8 = 4
"""`accuracy_level` of MatMulNBits: activations in int8 inside the kernel, its fastest way on a CPU."""
EMBED_FALLBACK = {"q2": "int8", "qdq8": "int8", "qdq16": "int8"}
"""What a table look-up has no kernel for, and what it gets in its place."""
RANGES = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
"""Method of a scheme's calibration -> ONNX Runtime's name of it."""
STATIC_OPTIONS: dict[str, Any] = {
    "WeightSymmetric": True,
    "MatMulConstBOnly": True,
    "OpTypesToExcludeOutputQuantization": ["MatMul", "Conv"],
}
"""Only products with a weight are cut to integers, and their sums stay wide."""


@dataclass(frozen=True)
class Job:
    """One component to quantize."""

    component: Component
    """vision, embed or decoder."""
    precision: str
    """A name of `scheme.OnnxPrecision`."""
    scheme: Scheme
    """Block size and calibration."""
    calibration: Path | None
    """Folder that `calibrate` wrote."""
    folder: Path
    """For files in between."""


def quantize_component(
    fp32: Path, out: Path, component: Component, precision: str, scheme: Scheme, calibration: Path | None = None
) -> list[str]:
    """Write `fp32` in another precision to `out` (with `out`_data above 1.9 GB); what stayed wider, in words.

    Needs two to three times the bytes of `fp32`: call it in a process of its own (`apart`). The result passed
    ONNX's checker and was loaded by ONNX Runtime. MpaError where a package or the calibration is missing.
    """
    try:
        import onnxruntime  # noqa: F401

        from mpa_edge.exporters.onnx import files
    except ModuleNotFoundError as error:
        raise missing_package(str(error.name), "export") from error
    with files.work_folder(out) as folder, _quiet():
        job = Job(component, precision, scheme, calibration, folder)
        source, made = files.prepare(fp32, folder), folder / out.name
        notes = _make(source, job, made)
        files.publish(made, out)
    return notes


def _make(source: Path, job: Job, out: Path) -> list[str]:
    """Quantize and write; the graph leaves the memory when this returns."""
    from mpa_edge.exporters.onnx import files

    precision = EMBED_FALLBACK.get(job.precision, job.precision) if job.component == "embed" else job.precision
    model = METHODS[precision](source, job)
    notes = [] if precision in ("fp32", "fp16") else files.kept_wide(model, source, job.component)
    files.sort(model)
    files.save(model, out)
    return notes


def _fp32(source: Path, job: Job) -> ModelProto:  # noqa: ARG001 (called like the others)
    import onnx

    return onnx.load(source)


def _fp16(source: Path, job: Job) -> ModelProto:
    return _halved(_fp32(source, job), job)


def _halved(model: ModelProto, job: Job) -> ModelProto:
    from mpa_edge.exporters.onnx.half import to_half

    return to_half(model, FULL_PRECISION_IO.get(job.component))


def _int8(source: Path, job: Job) -> ModelProto:
    """Weights in int8, activations quantized while running. Embeddings are looked up in uint8 and scaled after that."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from mpa_edge.exporters.onnx.files import is_large

    embed, target = job.component == "embed", job.folder / "quantized.onnx"
    quantize_dynamic(
        source,
        target,
        weight_type=QuantType.QUInt8 if embed else QuantType.QInt8,
        op_types_to_quantize=["Gather" if embed else "MatMul"],
        per_channel=not embed,
        use_external_data_format=is_large(source),
    )
    return _read_back(target)


def _q4(source: Path, job: Job) -> ModelProto:
    return _blockwise(source, job, bits=4)


def _q4f16(source: Path, job: Job) -> ModelProto:
    return _halved(_q4(source, job), job)


def _q2(source: Path, job: Job) -> ModelProto:
    return _blockwise(source, job, bits=2)


def _blockwise(source: Path, job: Job, bits: int) -> ModelProto:
    """Weights as blocks of `bits`-bit numbers, each block with its scale and, at 4 bits, its zero point.

    2 bits are the negative control: round-to-nearest without a zero point, which would save half of what is to be lost.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    operator, axis = ("Gather", 1) if job.component == "embed" else ("MatMul", 0)
    config = DefaultWeightOnlyQuantConfig(
        block_size=job.scheme.block_size,
        is_symmetric=bits == 2,
        accuracy_level=CPU_INT8,
        op_types_to_quantize=(operator,),
        quant_axes=((operator, axis),),
        bits=bits,
    )
    quantizer = MatMulNBitsQuantizer(_fp32(source, job), algo_config=config)
    quantizer.process()
    return quantizer.model.model


def _qdq8(source: Path, job: Job) -> ModelProto:
    return _static(source, job, "QInt8", symmetric=True)


def _qdq16(source: Path, job: Job) -> ModelProto:
    return _static(source, job, "QUInt16", symmetric=False)


def _static(source: Path, job: Job, activations: str, symmetric: bool) -> ModelProto:
    """Weights in int8 and the inputs of every MatMul and Conv in fixed ranges, as QuantizeLinear-DequantizeLinear.

    A range that is symmetric around zero is what TensorRT takes.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    from mpa_edge.exporters.onnx.calibrate import Feeds
    from mpa_edge.exporters.onnx.files import is_large

    if job.calibration is None:
        raise MpaError(f"{job.precision} needs calibration data: export a run, or choose a scheme without qdq")
    config = job.scheme.calibration or CalibrationConfig()
    target = job.folder / "quantized.onnx"
    quantize_static(
        source,
        target,
        Feeds(job.calibration, job.component),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Conv"],
        per_channel=True,
        activation_type=QuantType[activations],
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[RANGES[config.method]],
        use_external_data_format=is_large(source),
        extra_options={"ActivationSymmetric": symmetric, **STATIC_OPTIONS},
    )
    return _read_back(target)


def _read_back(path: Path) -> ModelProto:
    """What a quantizer wrote. The quantizer itself is a ring of objects that holds all weights: it has to go first."""
    import onnx

    gc.collect()
    return onnx.load(path)


METHODS: dict[str, Callable[[Any, Job], Any]] = {
    "fp32": _fp32,
    "fp16": _fp16,
    "int8": _int8,
    "q8": _int8,
    "q4": _q4,
    "q4f16": _q4f16,
    "q2": _q2,
    "qdq8": _qdq8,
    "qdq16": _qdq16,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Quantizers report every node; importing one of them sets up logging for the whole program."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:], root.level = handlers, level
