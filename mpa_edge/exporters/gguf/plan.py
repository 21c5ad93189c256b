"""Which type llama.cpp's quantizer gives each tensor, known before it runs: for sizes, refusals and honest notes.

The rules are those of llama.cpp's src/llama-quant.cpp at the commit of the pinned runtime (0c1e57098), for dense models
without an importance matrix. A test compares this table with what the quantizer really wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from mpa_edge.vlm.llama_cpp.gguf_header import BLOCKS, Header

Shapes = Mapping[str, tuple[int, ...]]

# precision of a scheme -> the type most tensors get
DEFAULT_TYPES = {
    "q8_0": "q8_0",
    "q6_k": "q6_k",
    "q5_k_m": "q5_k",
    "q4_k_m": "q4_k",
    "q4_0": "q4_0",
    "q2_k": "q2_k",
}
# where a row is no multiple of 256, the next type with blocks of 32
FALLBACKS = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
KEPT = ("_norm.weight", "position_embd", "patch_embd", "ffn_gate_inp.weight")
MANY_GQA = 4
ALIGNMENT = 32


@dataclass(frozen=True)
class Planned:
    """What one tensor becomes."""

    type: str
    """Type in the quantized file."""
    wanted: str
    """Type that the rows were too narrow for; the same as `type` where they were not."""


def plan(shapes: Shapes, precision: str, n_gqa: int = 1) -> dict[str, Planned]:
    """Type of every tensor of a language model, by its llama.cpp name.

    `shapes` are rows first; `n_gqa` is the number of query heads for each key head.
    """
    tied = "output.weight" not in shapes
    n_layers = 1 + max((_layer(name) for name in shapes), default=0)
    planned = {}
    for name, shape in shapes.items():
        wanted = _wanted(name, shape, precision, tied, n_layers, n_gqa)
        planned[name] = Planned(_fitting(wanted, shape[-1]), wanted)
    return planned


def _wanted(name: str, shape: tuple[int, ...], precision: str, tied: bool, n_layers: int, n_gqa: int) -> str:
    if len(shape) < 2:
        return "f32"
    if not name.endswith("weight") or any(part in name for part in KEPT):
        return "f16"
    default = DEFAULT_TYPES.get(precision, precision)
    if default in ("f32", "f16", "bf16", "q8_0"):
        return default
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return "q6_k" if shape[-1] % BLOCKS[default][0] == 0 else "q8_0"
    if precision == "q2_k":
        return _two_bits(name, n_gqa)
    more = "attn_v.weight" in name or "ffn_down" in name
    return "q6_k" if precision.endswith("_k_m") and more and _important(_layer(name), n_layers) else default


def _two_bits(name: str, n_gqa: int) -> str:
    if "attn_v.weight" in name:
        return "q4_k" if n_gqa >= MANY_GQA else "q3_k"
    return "q3_k" if "ffn_down" in name or "attn_output.weight" in name else "q2_k"


def _important(layer: int, n_layers: int) -> bool:
    """The first and last eighth of the layers, and every third between them.

    >>> [layer for layer in range(16) if _important(layer, 16)]
    [0, 1, 4, 7, 10, 13, 14, 15]
    """
    return layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else 0


def _fitting(wanted: str, row: int) -> str:
    """The wanted type, or the one that its narrow rows fall back to."""
    if row % BLOCKS[wanted][0] == 0:
        return wanted
    fallback = FALLBACKS.get(wanted, "f16")
    return fallback if row % BLOCKS[fallback][0] == 0 else "f16"


def tensor_bytes(shape: tuple[int, ...], type_name: str) -> int:
    """Bytes of a tensor in a file, with the padding behind it.

    >>> tensor_bytes((2, 32), "q8_0"), tensor_bytes((3,), "f32")
    (96, 32)
    """
    weights, block_bytes = BLOCKS[type_name]
    return -(-(prod(shape) // weights * block_bytes) // ALIGNMENT) * ALIGNMENT


def planned_bytes(shapes: Shapes, precision: str, n_gqa: int = 1) -> int:
    """Bytes of all tensors of a language model in a precision, without the file's header."""
    planned = plan(shapes, precision, n_gqa)
    return sum(tensor_bytes(shape, planned[name].type) for name, shape in shapes.items())


def predicted_bytes(header: Header, precision: str) -> int:
    """Size of the file that quantizing this one will make."""
    return header.data_offset + planned_bytes(shapes_of(header), precision, gqa_of(header))


def shapes_of(header: Header) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    return {tensor.name: tensor.shape for tensor in header.tensors}


def gqa_of(header: Header) -> int:
    """Query heads for each key head, as a language model's header says it."""
    family = header.metadata.get("general.architecture", "")
    heads = header.metadata.get(f"{family}.attention.head_count", 1)
    return int(heads) // int(header.metadata.get(f"{family}.attention.head_count_kv", heads) or 1)
