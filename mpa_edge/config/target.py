"""The target: a device or a class of devices, its runtimes, its schemes and its limits."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mpa_edge.config.accelerator import Accelerator
from mpa_edge.config.llama_cpp import LlamaCpp
from mpa_edge.config.scheme import Component, GgufPrecision, OnnxPrecision
from mpa_edge.config.section import Section

BudgetName = Literal["memory_bytes", "ttft_s", "tokens_per_s"]


class SchemeChoice(Section):
    """A scheme that this target runs."""

    name: str
    """A file of export/schemes."""
    components: dict[Component, OnnxPrecision | GgufPrecision]
    """Precision of each component on this target; overrides the scheme's own."""


class ImageBudget(Section):
    """How much of an image the device can process: what most determines the time to the first token."""

    max_tiles: int = Field(ge=1, le=256)
    """Tiles, for models that split an image into tiles; the overview is not counted."""
    max_pixels: int = Field(ge=1024)
    """Pixels of models that take any size (Qwen2-VL)."""


class Affinity(Section):
    """Threads and cores of the runtime."""

    threads: int | None = Field(ge=1, le=256)
    """CPU threads of the runtime; null: one for each core that the process may use."""
    cores: str | None = None
    """Cores to pin to, as in taskset (4-7); null: not pinned."""


class Board(Section):
    """What the hardware can do at most, from its data sheet: budgets are shares of it."""

    memory_bytes: int = Field(ge=100_000_000)
    """Of the board; a GPU's own, where it does not share."""
    bandwidth_bytes_per_s: float = Field(gt=1e8)
    """Peak of that memory."""
    operations_per_s: float = Field(gt=1e9)
    """Peak of what should do the work; a multiply and an add are two. fp16 of a GPU's matrix units, int8 of a CPU's."""


class Budgets(Section):
    """What a benchmark on the device is compared with: for each model, a share of what the board can do for it."""

    bandwidth_share: float = Field(gt=0, le=1)
    """Of the board's bandwidth, to be reached while tokens are decoded."""
    operations_share: float = Field(gt=0, le=1)
    """Of the board's operations, to be reached up to the first token."""
    memory_share: float = Field(gt=0, le=1)
    """Of the board's memory, to be taken at most."""
    bits_per_weight: float = Field(gt=1, le=32)
    """A model with more is judged as if it had so many: it is too large for this board."""
    memory_bytes: int | None = Field(None, ge=1_000_000)
    """A limit of your own for the peak memory; null: derived."""
    ttft_s: float | None = Field(None, gt=0)
    """A limit of your own for the time to the first token, seconds; null: derived."""
    tokens_per_s: float | None = Field(None, gt=0)
    """A limit of your own for the decoding speed; null: derived."""


class Thermal(Section):
    """Temperatures at which a measurement counts."""

    start_below_c: float | None
    """Start timing below this temperature; null where the device reports none."""
    throttle_at_c: float | None
    """From this temperature on the device throttles, and timings are invalid."""
    cool_down_s: int = Field(ge=0, le=3600)
    """Longest wait for the device to cool, seconds."""


class Target(Section):
    """Where an exported model runs."""

    schema_version: Literal[1]
    """Of this document."""
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Lower case letters, digits, dot, dash, underscore."""
    title: str = ""
    """One-line description."""
    kind: Literal["class", "device"]
    """A class of devices, or one product."""
    architecture: Literal["any", "x86_64", "aarch64"]
    """Instruction set."""
    runtimes: Annotated[tuple[Literal["onnxruntime", "llama.cpp"], ...], Field(min_length=1, strict=False)]
    """Runtimes that the device has."""
    accelerators: Annotated[tuple[Accelerator, ...], Field(min_length=1, strict=False)]
    """In order of preference: a benchmark uses the first one that device and runtime have; cpu is always there."""
    provider_options: dict[Annotated[str, Field(pattern="^[A-Za-z]+ExecutionProvider$")], dict[str, str]] = Field({})
    """Options of ONNX Runtime's execution providers, by the provider's name and its own names of the options."""
    llama_cpp: LlamaCpp = LlamaCpp()
    """How llama.cpp uses an accelerator."""
    schemes: Annotated[tuple[SchemeChoice, ...], Field(min_length=1, strict=False)]
    """Best first: the first one that the model's family supports is exported."""
    image: ImageBudget
    """Applied to the image processor at export."""
    context_tokens: int = Field(ge=128, le=131_072)
    """Longest prompt with its answer."""
    cpu: Affinity
    """Threads and cores."""
    board: Board
    """Peaks of the hardware; of a class, those of its weakest member."""
    budgets: Budgets
    """Shares of them."""
    transport: Literal["local", "ssh", "adb"]
    """The usual way to the device. A benchmark uses `--via`; without it, it runs on this machine."""
    thermal: Thermal
    """When the device is too hot to measure."""
    server: str | None = Field(default=None, pattern=r"^/.+$")
    """Path of llama-server on the device, where it has no Python; null: Python runs the model."""
    sources: dict[str, str]
    """For each key above: where its value comes from (a data sheet, a measurement, a choice with its reason)."""

    @model_validator(mode="after")
    def _every_value_has_a_source(self) -> Self:
        optional = {key for key in ("server", "provider_options") if not getattr(self, key)}
        optional |= set() if "llama_cpp" in self.model_fields_set else {"llama_cpp"}
        own = {"schema_version", "name", "title", "kind", "sources"} | optional
        missing = [key for key in type(self).model_fields if key not in own and key not in self.sources]
        unknown = [key for key in self.sources if key not in type(self).model_fields]
        if missing or unknown:
            name = (missing or unknown)[0]
            why = "has no source: say where its value comes from" if missing else "is no key of a target: remove it"
            raise ValueError(f"sources.{name} {why}")
        return self
