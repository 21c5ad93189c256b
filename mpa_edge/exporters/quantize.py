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
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import MpaError, missing_package
from mpa_edge.scheme import CalibrationConfig, Component, Scheme

if TYPE_CHECKING:
    from onnx import ModelProto

FULL_PRECISION_IO = {"decoder": ["inputs_embeds", "logits"]}
"""Inputs and outputs that stay fp32 in a 16-bit graph; all of them where a component is not named."""
CPU_INT8 = 4
"""`accuracy_level` of MatMulNBits: activations in int8 inside the kernel, its fastest way on a CPU."""
EMBED_FALLBACK = {"q2": "int8", "qdq8": "int8", "qdq16": "int8"}
"""What a table look-up has no kernel for, and what it gets in its place."""


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

    Needs about three times the bytes of `fp32`: call it in a process of its own (`exporters.apart`). The result passed
    ONNX's checker and was loaded by ONNX Runtime. MpaError where a package or the calibration is missing.
    """
    try:
        import onnxruntime  # noqa: F401

        from mpa_edge.exporters import onnx_files
    except ModuleNotFoundError as error:
        raise missing_package(str(error.name), "export") from error
    with onnx_files.work_folder(out) as folder, _quiet():
        job = Job(component, precision, scheme, calibration, folder)
        model = onnx_files.prepared(fp32)
        tables = onnx_files.float_tables(model)
        model = METHODS[EMBED_FALLBACK.get(precision, precision) if component == "embed" else precision](model, job)
        notes = onnx_files.kept_wide(model, tables, component) if precision not in ("fp32", "fp16") else []
        onnx_files.publish(model, out, folder)
    return notes


def _fp32(model: ModelProto, job: Job) -> ModelProto:  # noqa: ARG001 (called like the others)
    return model


def _fp16(model: ModelProto, job: Job) -> ModelProto:
    from mpa_edge.exporters.half import to_half

    return to_half(model, FULL_PRECISION_IO.get(job.component))


def _int8(model: ModelProto, job: Job) -> ModelProto:
    """Weights in int8, activations quantized while running. Embeddings are looked up in uint8 and scaled after that."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    embed = job.component == "embed"
    return _through_files(
        model,
        job,
        lambda source, target: quantize_dynamic(
            source,
            target,
            weight_type=QuantType.QUInt8 if embed else QuantType.QInt8,
            op_types_to_quantize=["Gather" if embed else "MatMul"],
            per_channel=not embed,
            use_external_data_format=_is_large(source),
        ),
    )


def _q4(model: ModelProto, job: Job) -> ModelProto:
    return _blockwise(model, job, bits=4)


def _q4f16(model: ModelProto, job: Job) -> ModelProto:
    return _fp16(_q4(model, job), job)


def _q2(model: ModelProto, job: Job) -> ModelProto:
    return _blockwise(model, job, bits=2)


def _blockwise(model: ModelProto, job: Job, bits: int) -> ModelProto:
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
    quantizer = MatMulNBitsQuantizer(model, algo_config=config)
    quantizer.process()
    return quantizer.model.model


def _qdq8(model: ModelProto, job: Job) -> ModelProto:
    return _static(model, job, "QInt8", symmetric=True)


def _qdq16(model: ModelProto, job: Job) -> ModelProto:
    return _static(model, job, "QUInt16", symmetric=False)


def _static(model: ModelProto, job: Job, activations: str, symmetric: bool) -> ModelProto:
    """Weights in int8 and the inputs of every MatMul and Conv in fixed ranges, as QuantizeLinear-DequantizeLinear."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    from mpa_edge.exporters.calibrate import Feeds

    if job.calibration is None:
        raise MpaError(f"{job.precision} needs calibration data: export a run, or choose a scheme without qdq")
    config = job.scheme.calibration or CalibrationConfig()
    feeds = Feeds(job.calibration, job.component)
    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    options = {
        "ActivationSymmetric": symmetric,
        "WeightSymmetric": True,
        "MatMulConstBOnly": True,
        "OpTypesToExcludeOutputQuantization": ["MatMul", "Conv"],
    }
    return _through_files(
        model,
        job,
        lambda source, target: quantize_static(
            source,
            target,
            feeds,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Conv"],
            per_channel=True,
            activation_type=QuantType[activations],
            weight_type=QuantType.QInt8,
            calibrate_method=methods[config.method],
            use_external_data_format=_is_large(source),
            extra_options=options,
        ),
    )


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


def _through_files(model: ModelProto, job: Job, quantize: Callable[[Path, Path], None]) -> ModelProto:
    """Run a quantizer that goes from file to file."""
    import onnx

    from mpa_edge.exporters.onnx_files import save

    source, target = job.folder / "source.onnx", job.folder / "target.onnx"
    save(model, source)
    model.Clear()  # the quantizer reads it again: one copy less in memory
    quantize(source, target)
    return onnx.load(target)


def _is_large(path: Path) -> bool:
    """Whether a graph has its weights in a file of its own."""
    return path.with_name(f"{path.name}_data").is_file()


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
