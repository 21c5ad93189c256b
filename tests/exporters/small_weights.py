"""A checkpoint of a dozen small tensors named as an Idefics3's: as safetensors, ONNX and GGUF, without a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray]
HIDDEN, FFN, VOCABULARY, HEADS, KV_HEADS, LAYERS = 64, 128, 160, 4, 2, 2
CONFIG = {
    "model_type": "idefics3",
    "text_config": {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS},
    "vision_config": {"num_hidden_layers": LAYERS},
}
FILES = {"vision": "vision.onnx", "embed": "embed.onnx", "decoder": "decoder.onnx"}
GGUF_FILES = {"mmproj": "mmproj.gguf", "language": "model.gguf"}


def base(seed: int = 0) -> Weights:
    """Weights as training leaves them: many small ones, norms near one."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.vision_model.embeddings.patch_embedding.weight": (HIDDEN, 3, 8, 8),
        "model.connector.modality_projection.proj.weight": (HIDDEN, FFN),
        "model.text_model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.text_model.norm.weight": (HIDDEN,),
    }
    for i in range(LAYERS):
        tower, layer = f"model.vision_model.encoder.layers.{i}", f"model.text_model.layers.{i}"
        shapes |= {f"{tower}.mlp.fc1.weight": (FFN, HIDDEN), f"{tower}.mlp.fc1.bias": (FFN,)}
        shapes |= {f"{layer}.self_attn.q_proj.weight": (HIDDEN, HIDDEN)}
        shapes |= {f"{layer}.self_attn.k_proj.weight": (HIDDEN // 2, HIDDEN)}
        shapes |= {f"{layer}.mlp.down_proj.weight": (HIDDEN, FFN)}
    made = {name: random.laplace(0, 0.05, shape) for name, shape in shapes.items()}
    made["model.text_model.norm.weight"] += 1
    return {name: array.astype(np.float32) for name, array in made.items()}


def aligned(before: Weights, where: str = "mlp|self_attn|connector", strength: float = 0.06) -> Weights:
    """Low-rank changes of the matrices, a few percent of their size, as LoRA makes them."""
    random = np.random.default_rng(5)
    after = dict(before)
    for name, array in before.items():
        if array.ndim == 2 and any(word in name for word in where.split("|")):
            change = random.normal(size=(array.shape[0], 4)) @ random.normal(size=(4, array.shape[1]))
            after[name] = array + np.float32(strength * array.std() / change.std()) * change.astype(np.float32)
    return after


def save(folder: Path, weights: Weights) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, folder / "model.safetensors")
    return folder


def component_of(name: str) -> str:
    return "vision" if "vision" in name or "connector" in name else "embed" if "embed_tokens" in name else "decoder"


def save_onnx(folder: Path, weights: Weights, precision: str = "fp32") -> Path:
    """One graph a component: a MatMul for each matrix (transposed, as exporters do), an Add for each vector."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {"lm_head.weight": weights["model.text_model.embed_tokens.weight"]}
    for component, file in FILES.items():
        chosen = {name: array for name, array in weights.items() if component_of(name) == component}
        _write_graph(folder / file, chosen | (head if component == "decoder" else {}), component)
        if precision != "fp32":
            quantize(folder / file, component, precision)
    return folder


def quantize(path: Path, component: str, precision: str) -> None:
    from mpa_edge.exporters.onnx.quantize import quantize_component

    full = path.rename(path.with_suffix(".full"))
    scheme: Any = SimpleNamespace(block_size=32, calibration=None)
    quantize_component(full, path, component, precision, scheme)
    full.unlink()


def _write_graph(path: Path, weights: Weights, component: str) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, outputs, tensors = [], [], []
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])] if component == "embed" else []
    for i, array in enumerate(weights.values()):
        plain = array if array.ndim != 2 or component == "embed" else array.T
        # a name says nothing: exporters make up their own
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(plain), f"val_{i}"))
        out, shape = f"out_{i}", [f"n{i}"]
        if component == "embed":
            nodes.append(helper.make_node("Gather", [f"val_{i}", "ids"], [out]))
            shape = ["n", HIDDEN]
        elif array.ndim == 2:
            inputs.append(helper.make_tensor_value_info(f"in_{i}", TensorProto.FLOAT, ["n", plain.shape[0]]))
            nodes.append(helper.make_node("MatMul", [f"in_{i}", f"val_{i}"], [out]))
            shape = ["n", plain.shape[1]]
        else:
            inputs.append(helper.make_tensor_value_info(f"in_{i}", TensorProto.FLOAT, list(array.shape)))
            nodes.append(helper.make_node("Add", [f"in_{i}", f"val_{i}"], [out]))
            shape = list(array.shape)
        outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, shape))
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)


def save_gguf(folder: Path, weights: Weights, precision: str = "F16") -> Path:
    """Language model and mmproj, queries and keys in llama.cpp's order, names that say nothing."""
    import gguf
    from gguf.quants import quantize as pack

    from mpa_edge.exporters.verify.census import interleaved

    folder.mkdir(parents=True, exist_ok=True)
    kind = gguf.GGMLQuantizationType[precision]
    for component, file in GGUF_FILES.items():
        writer = gguf.GGUFWriter(folder / file, "llama")
        for i, (name, array) in enumerate(weights.items()):
            if (component_of(name) == "vision") == (component == "mmproj"):
                for part, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
                    array = interleaved(array, heads) if part in name else array
                packed = array if array.ndim != 2 else pack(array, kind)
                writer.add_tensor(f"t.{i}", packed, raw_dtype=None if array.ndim != 2 else kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder


def edited(weights: Weights, change: Callable[[str, np.ndarray], np.ndarray | None]) -> Weights:
    """A copy with every tensor changed; None leaves it out."""
    changed = {name: change(name, array) for name, array in weights.items()}
    return {name: array for name, array in changed.items() if array is not None}
