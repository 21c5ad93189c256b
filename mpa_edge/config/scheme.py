"""The scheme: in which format and with how many bits a model is shipped, and how far it may be from the original."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from mpa_edge.config.section import Section

if TYPE_CHECKING:
    from typing import Self  # novm

Format = Literal["onnx", "gguf", "hybrid"]
Component = Literal["vision", "embed", "decoder", "mmproj", "language"]
OnnxPrecision = Literal["fp32", "fp16", "int8", "q8", "q4", "q4f16", "q2", "qdq8", "qdq16"]
GgufPrecision = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q2_k"]

COMPONENTS: dict[str, tuple[Component, ...]] = {
    "onnx": ("vision", "embed", "decoder"),
    "gguf": ("mmproj", "language"),
    "hybrid": ("vision", "language"),
}
ONNX_COMPONENTS = ("vision", "embed", "decoder")


class CalibrationConfig(Section):
    """Images and questions on which the ranges of static quantization are measured."""

    n: int = Field(64, ge=1, le=10_000)
    """Questions, taken from the run's own parity set with their images."""
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How a range is found."""


class Tolerance(Section):
    """How far the exported model may be from the checkpoint, on the probes of the parity check."""

    vision_cosine_min: float = Field(gt=-1.0, le=1.0)
    """Smallest cosine of an image token's embedding with its original."""
    kl_max: float = Field(gt=0.0)
    """Largest mean divergence of its next-token distributions from the checkpoint's, on English text, in nats."""


class Scheme(Section):
    """One format and precision in which a model is exported."""

    schema_version: Literal[1]
    """Of this document."""
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Lower case letters, digits, dot, dash, underscore."""
    title: str = ""
    """One-line description."""
    format: Format
    """onnx, gguf, or hybrid: an ONNX vision encoder in front of a GGUF language model."""
    components: dict[Component, OnnxPrecision | GgufPrecision]
    """Precision of each component of the format."""
    block_size: Literal[16, 32, 64, 128] = 32
    """Weights that share a scale in q8, q4 and q2."""
    eight_bits: tuple[str, ...] = Field((), strict=False)
    """Matrices of a q4 decoder that keep 8 bits, by their name in a layer, such as v_proj; head: the output matrix."""
    calibration: CalibrationConfig | None = None
    """Needed by qdq8 and qdq16."""
    tolerance: Tolerance
    """Of the parity check."""
    control: bool = False
    """A negative control: it is expected to lose the gain, and no target prefers it."""

    @model_validator(mode="after")
    def _components_of_the_format(self) -> Self:
        wanted = COMPONENTS[self.format]
        if sorted(self.components) != sorted(wanted):
            raise ValueError(f"components of format {self.format} are {', '.join(wanted)}: name exactly these")
        for component, precision in self.components.items():
            known = OnnxPrecision if component in ONNX_COMPONENTS else GgufPrecision
            if precision not in known.__args__:  # type: ignore[attr-defined]
                choice = ", ".join(known.__args__)  # type: ignore[attr-defined]
                raise ValueError(f"components.{component} is {precision}: choose from {choice}")
        return self

    @model_validator(mode="after")
    def _calibrated(self) -> Self:
        static = any(precision.startswith("qdq") for precision in self.components.values())
        if static and self.calibration is None:
            raise ValueError("qdq8 and qdq16 need calibration: add calibration with n, for example n: 64")
        return self
