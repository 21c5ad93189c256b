"""How large an export will be, known before anything is built: from config.json and the headers of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil

from mpa_edge.config.scheme import ONNX_COMPONENTS, Component, Scheme
from mpa_edge.exporters.gguf.plan import planned_bytes, tensor_bytes
from mpa_edge.exporters.source import Source
from mpa_edge.exporters.tensors import Weight, is_tied, read_weights, used
from mpa_edge.runs.files import read_json

Sizes = Mapping[str, Mapping[Component, int]]
COMPONENTS: tuple[Component, ...] = ("vision", "mmproj", "embed", "decoder", "language")

# bits of a number in a matrix; what is not multiplied keeps two bytes where the name says f16, else four
MATRIX_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "q8": 8, "q4": 4, "q4f16": 4, "q2": 2, "qdq8": 8, "qdq16": 8}
BLOCKWISE = ("q4", "q4f16", "q2")
STATIC = ("qdq8", "qdq16")
# an embedding table has no kernel for these
TABLE_BITS = MATRIX_BITS | {"q2": 8}
# measured: bytes of a graph without weights, and what a quantizer adds for each matrix that it takes
GRAPH_BYTES = {"vision": 22_000, "embed": 1_000, "decoder": 12_000}
LAYER_BYTES = {"vision": 9_000, "embed": 0, "decoder": 11_500}
NODE_BYTES = {"int8": 400, "q8": 400, "q4f16": 150, "qdq8": 600, "qdq16": 600}
TEXT_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
# a GGUF file: one tensor's entry, and the keys of its model
ENTRY_BYTES, KEYS_BYTES = 72, 1_000


def predict_sizes(source: Source, scheme: Scheme) -> dict[Component, int]:
    """Bytes of every component of a scheme, within 5 %. MpaError where the weights are damaged."""
    weights = _weights(source)
    return {
        component: onnx_bytes(weights, is_tied(source.config), component, precision, scheme.block_size)
        if component in ONNX_COMPONENTS
        else gguf_bytes(source, weights, component, precision)
        for component, precision in scheme.components.items()
    }


def full_bytes(source: Source, component: Component) -> int:
    """Bytes of a component's weights in fp32, without any format around them: what percentages refer to."""
    return 4 * sum(weight.n for weight in members(_weights(source), is_tied(source.config), component))


def _weights(source: Source) -> list[Weight]:
    return list(used(read_weights(source.checkpoint), source.config))


def members(weights: Iterable[Weight], tied: bool, component: Component) -> list[Weight]:
    """The weights of a component; a tied output matrix is in the ONNX decoder and in the table of embeddings."""
    if component in ("vision", "mmproj"):
        return [weight for weight in weights if weight.place == "vision"]
    if component == "language":
        return [weight for weight in weights if weight.place != "vision"]
    table = [weight for weight in weights if weight.place == "embed"]
    if component == "embed":
        return table
    head = [Weight("lm_head.weight", weight.shape, "head") for weight in table] if tied else []
    return [weight for weight in weights if weight.place in ("language", "head")] + head


def onnx_bytes(weights: Iterable[Weight], tied: bool, component: Component, precision: str, block_size: int) -> int:
    """Size of an ONNX graph with its weights."""
    inside = members(weights, tied, component)
    layers = {weight.layer for weight in inside} - {None}
    graph = GRAPH_BYTES[component] + LAYER_BYTES[component] * len(layers)
    nodes = NODE_BYTES.get(precision, 0) * sum(weight.is_onnx_matrix for weight in inside)
    return graph + nodes + sum(weight_bytes(weight, precision, block_size) for weight in inside)


def weight_bytes(weight: Weight, precision: str, block_size: int) -> int:
    """Size of one tensor in an ONNX graph, with its scales and zero points.

    >>> weight_bytes(Weight("x.weight", (8, 64), "language"), "q4", 32)
    328
    """
    static_convolution = precision in STATIC and len(weight.shape) > 2
    if not (weight.is_onnx_matrix or weight.place == "embed" or static_convolution):
        return weight.n * (2 if precision in ("fp16", "q4f16") else 4)
    bits = (TABLE_BITS if weight.place == "embed" else MATRIX_BITS)[precision]
    if bits > 8:
        return weight.n * bits // 8
    rows, columns = weight.shape[0], weight.n // weight.shape[0]
    if precision in BLOCKWISE and bits < 8:
        blocks = ceil(columns / block_size)
        scale = 2 if precision == "q4f16" else 4
        return rows * (blocks * block_size * bits // 8 + blocks * scale + ceil(blocks * bits / 8))
    return weight.n + (5 if weight.place == "embed" else 5 * rows)


def gguf_bytes(source: Source, weights: Iterable[Weight], component: Component, precision: str) -> int:
    """Size of a GGUF file: the language model with its vocabulary, or the vision encoder with its connector."""
    inside = members(weights, is_tied(source.config), component)
    entries = KEYS_BYTES + ENTRY_BYTES * len(inside)
    if component == "mmproj":
        return entries + sum(tensor_bytes(weight.shape, mmproj_type(weight, precision)) for weight in inside)
    text = source.config.get("text_config") or source.config
    heads = text.get("num_attention_heads", 1)
    shapes = {gguf_name(weight): weight.shape for weight in inside}
    n_gqa = heads // (text.get("num_key_value_heads") or heads)
    return entries + vocabulary_bytes(source) + planned_bytes(shapes, precision, n_gqa)


def gguf_name(weight: Weight) -> str:
    """What llama.cpp calls a tensor of a language model.

    >>> gguf_name(Weight("model.text_model.layers.3.self_attn.v_proj.weight", (64, 64), "language"))
    'blk.3.attn_v.weight'
    """
    if weight.layer is None:
        return {"embed": "token_embd.weight", "head": "output.weight"}.get(weight.place, "output_norm.weight")
    module, _, kind = weight.name.partition(f".{weight.layer}.")[2].rpartition(".")
    return f"blk.{weight.layer}.{TEXT_NAMES.get(module, module)}.{kind}"


def mmproj_type(weight: Weight, precision: str) -> str:
    """Type of a tensor of the vision encoder in llama.cpp's own conversion."""
    if len(weight.shape) < 2 or ".embeddings." in weight.name or not weight.is_matrix:
        patches = len(weight.shape) > 2 and ".embeddings." not in weight.name and precision == "f16"
        return "f16" if patches else "f32"
    return precision if precision != "q8_0" or weight.shape[-1] % 32 == 0 else "f16"


def vocabulary_bytes(source: Source) -> int:
    """Tokens with their kinds, and merges, as a GGUF file stores them: a length of 8 bytes before each text."""
    document = read_json(source.checkpoint / "tokenizer.json") or {}
    model = document.get("model") or {}
    added = [token.get("content", "") for token in document.get("added_tokens") or ()]
    known = model.get("vocab") or {}
    tokens = {*(known if isinstance(known, dict) else (text for text, _ in known)), *added}
    merges = [item if isinstance(item, str) else " ".join(item) for item in model.get("merges") or ()]
    text = source.config.get("text_config") or source.config
    padding = max(0, text.get("vocab_size", 0) - len(tokens))
    template = source.checkpoint / "chat_template.jinja"
    return (
        sum(len(token.encode()) + 12 for token in tokens)
        + 20 * padding
        + sum(len(merge.encode()) + 8 for merge in merges)
        + (template.stat().st_size if template.is_file() else 0)
    )


def size_table(source: Source, sizes: Sizes, title: str = "size, MB") -> str:
    """Scheme x component as text: MB, and the share of the component's weights in fp32."""
    from rich.console import Console
    from rich.table import Table

    parts: list[Component] = [part for part in COMPONENTS if any(part in row for row in sizes.values())]
    full = {part: full_bytes(source, part) for part in parts}
    table = Table(title=title)
    for heading in ("", *parts, "all"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in sizes.items():
        cells = [_cell(row[part], full[part]) if part in row else "" for part in parts]
        table.add_row(name, *cells, _cell(sum(row.values()), sum(full[part] for part in parts if part in row)))
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")


def _cell(size_bytes: int, full: int) -> str:
    return f"{size_bytes / 1e6:,.{1 if size_bytes >= 1e7 else 2}f} {size_bytes / full:4.0%}"
