"""What a format cannot take is refused before minutes are spent."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from mpa_edge.config.scheme import ONNX_COMPONENTS, Scheme
from mpa_edge.config.target import ImageBudget
from mpa_edge.errors import MpaError, missing_package
from mpa_edge.exporters.budget import image_values
from mpa_edge.exporters.sizes import predict_sizes
from mpa_edge.exporters.source import Source
from mpa_edge.runs.files import read_json
from mpa_edge.vlm.transformers import checkpoint

NEEDS = {
    "onnx": (
        ("torch", "align"),
        ("transformers", "align"),
        ("onnx", "export"),
        ("onnxruntime", "export"),
        ("onnxscript", "export"),
        ("tokenizers", "onnx"),
    ),
    "gguf": (("torch", "align"), ("transformers", "align"), ("gguf", "export"), ("llama_cpp", "gguf")),
}


def check_possible(source: Source, scheme: Scheme, budget: ImageBudget | None = None) -> None:
    """Raise MpaError with the reason where a scheme cannot be made of a checkpoint, or not on this machine."""
    _family(source)
    formats = {"onnx" if component in ONNX_COMPONENTS else "gguf" for component in scheme.components}
    for name in sorted(formats):
        for package, extra in NEEDS[name]:
            if importlib.util.find_spec(package) is None:
                raise missing_package(package, extra)
    if "gguf" in formats:
        from mpa_edge.exporters.gguf.check import check_gguf_possible

        check_gguf_possible(
            source.config,
            image_values(source.checkpoint, budget),
            read_json(source.checkpoint / "tokenizer.json"),
            vision="mmproj" in scheme.components,
            precisions=scheme.components.values(),
        )
    if scheme.calibration is not None and source.run is None:
        raise MpaError(
            f"scheme {scheme.name} is calibrated on a run's own pictures, and {source.name} is no run: "
            "name the run folder, or another scheme"
        )


def check_processor(checkpoint_folder: str) -> None:
    """Raise MpaError where a checkpoint's tokenizer, image processor or chat template cannot be loaded."""
    checkpoint.load_processor(checkpoint_folder)


def _family(source: Source) -> None:
    """The family must be known, and the weights must be safetensors: a pickle is a program."""
    source.family  # noqa: B018  # raises where no family covers it
    if not any(source.checkpoint.glob("*.safetensors")):
        pickles = [path.name for path in source.checkpoint.glob("*.bin")]
        why = f"only {pickles[0]}, which could run a program" if pickles else "no weights"
        raise MpaError(f"{source.checkpoint} holds {why}: give a checkpoint with .safetensors files")


def disk_need_bytes(source: Source, schemes: Sequence[Scheme]) -> int:
    """Room for the shared full-precision parts and for every scheme."""
    fp32 = 4 * sum(path.stat().st_size for path in source.checkpoint.glob("*.safetensors")) // 2
    return fp32 + sum(sum(predict_sizes(source, scheme).values()) for scheme in schemes)
