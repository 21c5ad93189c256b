"""How many bytes an export reads for each token that it writes, and how near that is to what the memory allows."""

from __future__ import annotations

from pathlib import Path

import onnx
from PIL import Image

from mpa_edge.artifact import read_artifact
from mpa_edge.bench.host.bundle import weight_files
from mpa_edge.vlm.llama_cpp.gguf_header import TensorInfo, read_header
from mpa_edge.vlm.pixels import Prepared, prepare
from mpa_edge.vlm.shared.prompts import PromptTokenizer, prompt_text

HALF, FULL = 2, 4


def share_of_bound(tokens_per_s: float, read_bytes: int, bytes_per_s: float) -> float:
    """Decoding speed over the fastest that the memory allows.

    >>> share_of_bound(100.0, 150_000_000, 30e9)
    0.5
    """
    return tokens_per_s * read_bytes / bytes_per_s


def weight_bytes(export: Path) -> int:
    """Weights of the language model that one step of decoding reads."""
    files = read_artifact(export).files
    if "decoder" in files:
        return sum((export / name).stat().st_size for name in weight_files(export, [files["decoder"]]))
    return matrix_bytes(read_header(export / files["language"]).tensors)


def matrix_bytes(tensors: tuple[TensorInfo, ...]) -> int:
    """All tensors; the table of token embeddings only where the head is the same one.

    >>> table, head = (TensorInfo(name, (2, 2), "f32", 0, 16) for name in ("token_embd.weight", "output.weight"))
    >>> matrix_bytes((table, head)), matrix_bytes((table,))
    (16, 16)
    """
    own_head = any(tensor.name == "output.weight" for tensor in tensors)
    return sum(t.n_bytes for t in tensors if not (own_head and t.name == "token_embd.weight"))


def cache_bytes(export: Path, n_tokens: int) -> int:
    """Keys and values of a context: half precision in llama.cpp, in ONNX that of the graph."""
    artifact = read_artifact(export)
    text = artifact.text
    numbers = 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * text["head_dim"] * n_tokens
    return numbers * (graph_cache_bytes(export / artifact.files["decoder"]) if "decoder" in artifact.files else HALF)


def graph_cache_bytes(path: Path) -> int:
    """Bytes of one number in the cache of an ONNX decoder."""
    graph = onnx.load(path, load_external_data=False).graph
    types = {entry.name: entry.type.tensor_type.elem_type for entry in graph.input}
    cached = next(kind for name, kind in types.items() if name.startswith("past_key_values."))
    return HALF if cached == onnx.TensorProto.FLOAT16 else FULL


def prompt_tokens(export: Path, picture: Path, question: str) -> int:
    """Tokens of a question with its picture."""
    artifact = read_artifact(export)
    text = prompt_text(artifact, question, prepared(export, picture).expansion)
    return len(PromptTokenizer(export, artifact).encode(text))


def tiles_of(export: Path, picture: Path) -> int:
    """How many tiles a picture becomes, the overview counted."""
    return int(prepared(export, picture).pixels["pixel_values"].shape[1])


def prepared(export: Path, picture: Path) -> Prepared:
    """A picture as the vision encoder takes it."""
    with Image.open(picture) as image:
        return prepare(read_artifact(export).image, image.convert("RGB"))
