"""Forecast of an export's size: bits x parameters, from the shapes in the checkpoint. About 5 % off for real models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from mpa_edge.config.scheme import ONNX_COMPONENTS, Component, Scheme
from mpa_edge.exporters.source import Source

Place = Literal["vision", "audio", "embed", "language", "head"]
Sizes = Mapping[str, Mapping[Component, int]]

COMPONENTS: tuple[Component, ...] = ("vision", "mmproj", "embed", "decoder", "language")
VISION = re.compile(r"(^|\.)(vision_model|vision_tower|visual|connector|multi_modal_projector|mlp1|embed_vision)\.")
AUDIO = re.compile(r"(^|\.)(audio_tower|embed_audio)\.")
LAYER = re.compile(r"(^|\.)(layers|layer|blocks)\.(\d+)\.")
# looked up or added, never multiplied: not quantized
TABLES = re.compile(r"pos(ition)?_embed|class_embedding|cls_token|mask_token")

ONNX_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "q8": 8, "q4": 4, "q4f16": 4, "q2": 2, "qdq8": 8, "qdq16": 8}
BLOCKS = ("q8", "q4", "q4f16", "q2")
# bits a weight by ggml's block layouts: where rows are a multiple of 256, and where they are not (a wider type is used)
GGUF_BITS = {
    "f32": (32, 32),
    "f16": (16, 16),
    "bf16": (16, 16),
    "q8_0": (8.5, 8.5),
    "q6_k": (6.5625, 8.5),
    # averages: half of the layers keep some matrices at 6 bits (K_M), all keep some at 3 bits (q2_k)
    "q5_k_m": (5.65, 6.4),
    "q4_k_m": (4.85, 5.9),
    "q4_0": (4.5, 4.5),
    "q2_k": (2.95, 4.5),
}
# text of a token, its kind, and its share of the merges
VOCABULARY_BYTES = 36


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint."""

    name: str
    """As the checkpoint calls it."""
    shape: tuple[int, ...]
    """As torch writes it."""
    place: Place
    """Part of the model."""

    @property
    def n_parameters(self) -> int:
        """Product of the shape."""
        return prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether quantizers take it: a weight of a matrix product. Qwen's 3-D patch convolution is one in ONNX."""
        return len(self.shape) in (2, 5) and self.place != "embed" and not TABLES.search(self.name)

    @property
    def layer(self) -> int | None:
        """Number of its layer."""
        found = LAYER.search(self.name)
        return int(found[3]) if found else None


def forecast_bytes(source: Source, scheme: Scheme) -> dict[Component, int]:
    """Size of each component of a scheme, in bytes, before anything is built. MpaError where the weights are damaged.

    Graph structure and metadata are left out: they are below 1 % of any model that is not a toy.
    """
    sizes: dict[Component, int] = {}
    for component, precision in scheme.components.items():
        if component in ONNX_COMPONENTS:
            bits = [(_onnx_bits(one, precision, scheme), one) for one in tensors_of(source, component)]
        else:
            bits = [(_gguf_bits(one, component, precision, source), one) for one in tensors_of(source, component)]
        sizes[component] = int(sum(width * tensor.n_parameters for width, tensor in bits) / 8)
        if component == "language":
            text = source.config.get("text_config") or source.config
            sizes[component] += VOCABULARY_BYTES * text.get("vocab_size", 0)
    return sizes


def disk_need_bytes(source: Source, schemes: Sequence[Scheme]) -> int:
    """About the disk space that an export takes while it runs: full-precision parts, and every scheme."""
    parts = 2 * source.weights_bytes
    return parts + sum(sum(forecast_bytes(source, scheme).values()) for scheme in schemes)


def fp32_bytes(source: Source, component: Component) -> int:
    """Bytes of a component's weights in fp32: what percentages refer to."""
    return 4 * sum(tensor.n_parameters for tensor in tensors_of(source, component))


def _onnx_bits(tensor: Tensor, precision: str, scheme: Scheme) -> float:
    """Bits for each parameter of a tensor in an ONNX graph."""
    is_static_convolution = precision.startswith("qdq") and len(tensor.shape) > 2
    if not (tensor.is_matrix or tensor.place == "embed" or is_static_convolution):
        return 16 if precision in ("fp16", "q4f16") else 32
    bits = ONNX_BITS[precision]
    if tensor.place == "embed" and precision in ("q8", "q2"):  # there is no kernel for such a table
        return 8
    if precision not in BLOCKS:
        return bits
    scale_bits = 16 if precision == "q4f16" else 32
    name = "head" if tensor.place == "head" else tensor.name.removesuffix(".weight").rpartition(".")[2]
    if bits == 4 and tensor.place in ("language", "head") and name in scheme.eight_bits:
        bits = 8
    zero_point_bits = 4 if bits == 4 else 0
    return bits + (scale_bits + zero_point_bits) / scheme.block_size


def _gguf_bits(tensor: Tensor, component: Component, precision: str, source: Source) -> float:
    """Bits for each parameter of a tensor in a GGUF file."""
    is_table = tensor.place == "embed"
    if not (tensor.is_matrix or is_table):
        return 32
    columns = tensor.shape[-1]
    if component == "mmproj" and precision == "q8_0" and columns % 32:
        # rows that do not fit its blocks; Qwen's patch convolution stays f32
        return 16 if len(tensor.shape) == 2 else 32
    is_output = tensor.place == "head" or (is_table and is_tied(source.config))
    if is_output and GGUF_BITS[precision][0] < 6:
        precision = "q6_k"
    return GGUF_BITS[precision][1 if columns % 256 else 0]


# --- tensors of a checkpoint ------------------------------------------------------------------------------------------


def tensors_of(source: Source, component: Component) -> list[Tensor]:
    """The tensors of a component, from the headers of the safetensors files. MpaError where a file is damaged.

    A tied output matrix is in the ONNX decoder and in the table of embeddings.
    """
    found = [Tensor(name, shape, place_of(name)) for name, shape in source.shapes.items()]
    tensors = list(used(found, source.config))
    if component in ("vision", "mmproj"):
        places = ("vision", "audio") if component == "mmproj" else ("vision",)
        return [tensor for tensor in tensors if tensor.place in places]
    if component == "language":
        return [tensor for tensor in tensors if tensor.place not in ("vision", "audio")]
    table = [tensor for tensor in tensors if tensor.place == "embed"]
    if component == "embed":
        return table
    head = [Tensor("lm_head.weight", one.shape, "head") for one in table[:1]] if is_tied(source.config) else []
    return [tensor for tensor in tensors if tensor.place in ("language", "head")] + head


def place_of(name: str) -> Place:
    """Part of the model that a tensor belongs to.

    >>> place_of("model.connector.modality_projection.proj.weight"), place_of("model.text_model.embed_tokens.weight")
    ('vision', 'embed')
    >>> place_of("lm_head.weight"), place_of("model.language_model.layers.0.mlp.up_proj.weight")
    ('head', 'language')
    """
    if VISION.search(name):
        return "vision"
    if AUDIO.search(name):
        return "audio"
    if name.endswith(("embed_tokens.weight", "embed_tokens_per_layer.weight")):
        return "embed"
    return "head" if name.endswith("lm_head.weight") else "language"


def used(tensors: list[Tensor], config: dict[str, Any]) -> Iterator[Tensor]:
    """Without tensors that the model never reads.

    These are the vision layers behind the one whose features are taken (LLaVA), the tower's own pooling head, and an
    output matrix that is tied to the table of embeddings.
    """
    tower = [tensor for tensor in tensors if tensor.place == "vision" and ".head." not in tensor.name]
    n_layers = 1 + max((tensor.layer or 0 for tensor in tower), default=0)
    chosen = config.get("vision_feature_layer", -1)
    # hidden states are counted from 0, the tower's input; a negative number counts from the last
    last = max(layer % (n_layers + 1) for layer in ([chosen] if isinstance(chosen, int) else chosen))
    yield from (tensor for tensor in tower if tensor.layer is None or tensor.layer < last)
    yield from (tensor for tensor in tensors if tensor.place in ("audio", "embed", "language"))
    if not is_tied(config):
        yield from (tensor for tensor in tensors if tensor.place == "head")


def is_tied(config: dict[str, Any]) -> bool:
    """Whether the output matrix is the table of embeddings."""
    text = config.get("text_config") or {}
    return bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))


# --- on screen --------------------------------------------------------------------------------------------------------


def size_table(source: Source, sizes: Sizes, title: str = "size, MB") -> str:
    """Scheme x component as text: MB, and the share of the component's weights in fp32."""
    from rich.console import Console
    from rich.table import Table

    components: list[Component] = [one for one in COMPONENTS if any(one in row for row in sizes.values())]
    full = {component: fp32_bytes(source, component) for component in components}
    table = Table(title=title)
    for heading in ("", *components, "all"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in sizes.items():
        cells = [_cell(row[one], full[one]) if one in row else "" for one in components]
        table.add_row(name, *cells, _cell(sum(row.values()), sum(full[one] for one in components if one in row)))
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")


def _cell(size_bytes: int, full_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.{1 if size_bytes >= 1e7 else 2}f} {size_bytes / full_bytes:4.0%}"
