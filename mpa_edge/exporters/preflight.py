"""What cannot be exported is refused before anything is built."""

from __future__ import annotations

import importlib.util

from mpa_edge.config.scheme import ONNX_COMPONENTS, Scheme
from mpa_edge.config.target import ImageBudget
from mpa_edge.errors import MpaError, missing_package
from mpa_edge.exporters.budget import image_values
from mpa_edge.exporters.gguf.check import check_gguf_possible
from mpa_edge.exporters.source import Source
from mpa_edge.runs.files import read_json

# format -> (package, extra of mpa-edge that installs it)
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
    source.family  # noqa: B018  # raises where no family covers it
    if not any(source.checkpoint.glob("*.safetensors")):
        pickles = [path.name for path in source.checkpoint.glob("*.bin")]
        why = f"only {pickles[0]}, a pickle that can run code" if pickles else "no weights"
        raise MpaError(f"{source.checkpoint} holds {why}: use a checkpoint with .safetensors files")
    formats = {"onnx" if component in ONNX_COMPONENTS else "gguf" for component in scheme.components}
    for name in sorted(formats):
        for package, extra in NEEDS[name]:
            if importlib.util.find_spec(package) is None:
                raise missing_package(package, extra)
    if "gguf" in formats:
        check_gguf_possible(
            source.config,
            image_values(source.checkpoint, budget),
            read_json(source.checkpoint / "tokenizer.json"),
            vision="mmproj" in scheme.components,
            precisions=scheme.components.values(),
        )
    if scheme.calibration is not None and source.run is None:
        raise MpaError(
            f"scheme {scheme.name} is calibrated on a run's own images, and {source.name} is not a run: "
            "name the run folder, or another scheme"
        )
